"""ckptd under torch.distributed.checkpoint (DCP).

    import torch.distributed.checkpoint as dcp
    from ckptd.torch import Reader, Writer

    dcp.save(state, storage_writer=Writer("llama/7b-sft", step=1200))
    future = dcp.async_save(state, storage_writer=writer, checkpoint_id="llama/7b-sft@1200")
    dcp.load(state, storage_reader=Reader("llama/7b-sft@latest"))

1. A set that a Writer saved is like any other: `ckptd.load`, `load_into`, the mount and the command line read it, and
   a Reader reads what `ckptd.save` saved. There is no second format and no metadata file: each rank's shard says what
   it holds, and the set's manifest has it all.
2. The set becomes visible by ckptd's own commit, when every rank's shard is durable; also with use_collectives=False,
   where DCP itself commits nothing. A rank that dies before its write ended leaves no set.
3. async_save's stall is one copy, of each tensor this rank writes, into memory that the daemon lends.
4. Objects that are no tensors are kept without pickle where their type allows, otherwise only with allow_pickle=True.

Written for and tested with the version of torch in requirements-torch.txt; the interfaces are those of 2.4 and later.
"""

from ._reader import Reader
from ._writer import Writer

__all__ = ["Reader", "Writer"]
