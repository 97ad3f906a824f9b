"""One of several processes that train as `victim.py` does: torchrun ... two_ranks.py RUN FAULT RANK [unsettled].

RUN, FAULT and RANK as JSON; `unsettled`: gradient buckets are laid out as DistributedDataParallel does it by itself.
"""

import json
import os
import sys
from pathlib import Path

from victim import Fault, Run, prepare_notes, train_here

if __name__ == "__main__":
    run, fault, rank = (json.loads(word) for word in sys.argv[1:4])
    run = Run(run["strategy"], Path(run["output"]), tuple((name, value) for name, value in run["settings"]))
    own = os.environ["RANK"]
    if sys.argv[4:] == ["unsettled"]:
        from toolkit.training import device

        device.warm_up_ddp_buckets = lambda *words: None
    notes = prepare_notes(run, own)
    sys.exit(train_here(run, Fault(**fault) if int(own) == rank else Fault(), False, notes))
