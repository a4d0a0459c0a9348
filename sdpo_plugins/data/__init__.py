"""Real data sets in each host's format, with the authors' splits and prompts: what `sdpo data` writes.

    prepared = prepare("gsm8k", host="verl", limit=100)
    print(prepared.folder, prepared.card["scorer"])

Reading needs the library `datasets`: pip install 'sdpo-plugins[data]'.
"""

from sdpo_plugins.data.catalogue import SOURCES, prepare
from sdpo_plugins.data.prepare import CommonOptions, Prepared, prepare_source
from sdpo_plugins.data.sources import Example, Facts, Source, Split

__all__ = ["SOURCES", "CommonOptions", "Example", "Facts", "Prepared", "Source", "Split", "prepare", "prepare_source"]
