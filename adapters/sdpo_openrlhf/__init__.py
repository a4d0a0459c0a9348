"""SDPO in OpenRLHF: subclasses of its controllers and of its policy actor, and a launcher around its own parser."""
