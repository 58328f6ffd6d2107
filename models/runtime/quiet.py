"""Silences what other libraries say about themselves while they are imported; imported before them."""

import logging
import warnings

# On CPUs with AVX512-BF16 bitsandbytes says that it found no package for the very kernel that
# `quantize.make_trainable` keeps it from using.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# torchao says which of its kernels were built for another PyTorch, and that enums need no registration; transformers
# imports it wherever it is installed.
for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# peft says that it could not merge LoRA into such weights, which `LanguageModel.merge_lora` never asks for.
warnings.filterwarnings("ignore", message="TorchaoLoraLinear was instantiated without")
