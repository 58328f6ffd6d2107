"""LoRA on a language model: added next to its frozen linear layers, listed, merged into their weights."""

from collections.abc import Iterator

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from models.quantization.backends import Backend
from support.command_line import UserError


class LoraMixin(nn.Module):
    """The part of `LanguageModel` that handles LoRA."""

    model: PreTrainedModel
    backend: Backend

    def add_lora(self, *, rank: int, alpha: float, dropout: float, target_modules: tuple[str, ...]) -> None:
        """Add trainable low-rank float32 layers to the linear layers of these names in every block."""
        decoder = self.model.get_decoder()  # not the whole: a multimodal model's image tower has the same names
        linears = {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if _is_linear(module)}
        unknown = sorted(set(target_modules) - linears)
        if unknown or not target_modules:
            raise UserError(
                f"model.lora_target_modules: {unknown or 'the empty list'} names no linear layer of this model; "
                f"it has {', '.join(sorted(linears))}."
            )
        config = LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(target_modules), bias="none"
        )
        inject_adapter_in_model(config, decoder)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_" in name)
            if "lora_" in name:
                parameter.data = parameter.data.float()
        self.train(self.training)

    def lora_parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for name, parameter in self.named_parameters() if "lora_" in name)

    def lora_layers(self) -> Iterator[LoraLayer]:
        return (module for module in self.model.modules() if isinstance(module, LoraLayer))

    def merge_lora(self) -> bool:
        """Add LoRA to the weights, for serving. False, with nothing changed, where that would round it."""
        if not self.backend.mergeable:
            return False
        for layer in self.lora_layers():
            if not layer.merged:
                layer.merge(safe_merge=True)
        return True


def _is_linear(module: nn.Module) -> bool:
    """Plain and quantised linear layers alike; those of other packages do not always inherit from nn.Linear."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")
