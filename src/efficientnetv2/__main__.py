"""``python -m efficientnetv2``: the program where its script is not on the path, and as torchrun starts it."""

import os
import sys

# ``-m`` puts the working directory first on the path, so that a socket.py among the images would be run.
if sys.path[:1] in ([""], [os.getcwd()]):
    del sys.path[0]

from efficientnetv2.cli.main import main

if __name__ == "__main__":
    main()
