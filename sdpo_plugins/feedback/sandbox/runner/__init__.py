"""What runs inside of a sandbox: no module here imports anything but the standard library and the others here.

`bundle.py` outside joins them to one text, which is all that a sandbox is given.
"""
