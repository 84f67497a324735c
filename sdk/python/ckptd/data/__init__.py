"""Training data: versions of data sets, in a shuffled order that a checkpoint resumes.

    import ckptd, ckptd.data

    data = ckptd.data.Dataset("imagenet@latest", seed=7, decode=decode)
    loader = data.loader(batch_size=256, num_workers=4)
    for epoch in range(90):
        loader.set_epoch(epoch)
        for batch in loader:
            ...
            ckptd.save("resnet", step=step, state=state, data=loader)
    state = ckptd.load("resnet@latest", data=loader)  # goes on with the next sample

1. A version never changes; its samples have numbers, and data[i] is sample i.
2. The order of an epoch depends on version, seed, epoch and mode alone. However many ranks go on from a cursor,
   no sample of the epoch comes twice and none is left out.
3. A cursor counts what the training loop was given, not what workers fetched ahead: that of Loader, and the state of
   torchdata's StatefulDataLoader over data.sampler().
4. Bytes come from packs the daemon has checked, mapped into this process; at most 64 packs are mapped at a time.
5. A data set may be used after a fork and be pickled to a spawned process; each opens its own connection.
"""

from ._dataset import Dataset, webdataset
from ._list import Info, datasets, versions
from ._loader import Loader
from ._memmap import memmap
from ._sampler import InOrder, Sampler

__all__ = ["Dataset", "InOrder", "Info", "Loader", "Sampler", "datasets", "memmap", "versions", "webdataset"]
