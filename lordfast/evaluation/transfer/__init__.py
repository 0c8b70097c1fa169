"""Black-box transfer: how far attacked images disturb image variation in other models and under other prompts.

Part of evaluation; what may import evaluation may import it.
"""

from lordfast.evaluation.transfer.config import TransferConfig
from lordfast.evaluation.transfer.run import run_transfer

__all__ = ["TransferConfig", "run_transfer"]
