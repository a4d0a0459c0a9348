"""What every test may rely on: no network, and no warning about tokenizers in forked processes."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# A distribution of its own: tests install it and use it as a third party's.
collect_ignore = ["example_plugin"]
