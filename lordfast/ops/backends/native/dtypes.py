"""The element types that the extension's kernels take, under the names it knows them by."""

import torch

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
