"""Several trainings in the same processes, one after the other: `trainings.py '[["clip", "--out", ...], ...]'`."""

import json
import os
import sys

from polymodal.cli.training import train

for arguments in json.loads(sys.argv[1]):
    train(arguments)
sys.stdout.flush()
os._exit(0)  # as the command line does: threads of gloo now and then abort while Python shuts down
