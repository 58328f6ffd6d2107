"""Silences other libraries' messages about themselves while they are imported; must be imported before them."""

import logging
import warnings

# On CPUs with AVX512-BF16 bitsandbytes reports a missing package, for a kernel that `backends.make_trainable` disables.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# torchao reports kernels that were built for another PyTorch, and that enums need no registration; transformers imports
# it wherever it is installed.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# peft warns that it could not merge LoRA into such weights, which `LanguageModel.merge_lora` never does.
warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
# transformers' Whisper warns of arguments that it passes to itself.
logging.getLogger("transformers.generation.utils").addFilter(
    lambda record: "suppress_tokens" not in record.getMessage()
)
