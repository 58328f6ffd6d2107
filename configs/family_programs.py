"""What programs of the SALMONN family say in their code and not in their files, or with switches of their own.

A file is recognised by keys that only that program reads. What is taken over from its code is said in a line.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from configs.family_keys import ABSENT, is_off
from configs.family_reading import Reading
from configs.parsing import shown

TEACHER = "distillation.teacher"
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CED_NAMES = {f"ced_{size}": f"mispeech/ced-{size}" for size in ("tiny", "mini", "small", "base")}
"""Names in nlp-07's code -> hub names."""


def refuse_absent_features(reading: Reading, section: str) -> None:
    """Take away the switches of features that are not here: an error for one that is on."""
    for switch, absent in ABSENT.items():
        keys = [f"{section}.{key[6:]}" if key.startswith("model.") else key for key in (switch, *absent.settings)]
        found, value = reading.pop(keys[0])
        settings = [key for key in keys[1:] if reading.pop(key)[0]]
        if found and not is_off(value):
            reading.refuse(keys[0], f"{absent.feature} not supported (found {shown(value)}); {absent.instead}.")
            continue
        for key in [keys[0], *settings] if found else settings:
            reading.ignore(key, f"{absent.feature} not supported, and off")


def read_pruning_of_checkpoints(reading: Reading, section: str) -> None:
    """recsys-08: layers are left out, and Whisper has low-rank adapters, where a checkpoint says so."""
    on = {}
    for switch, what in (("prune", "the layers to leave out"), ("whisper_lora", "low-rank adapters of Whisper")):
        key = f"{section}.{switch}"
        on[switch] = reading.switch(key)
        if on[switch] is None:
            continue
        if on[switch] and (reading.holder("datasets") or {}).get("train_ann_path"):
            reading.refuse(key, f"{what} cannot be trained here (found true (true/false)); set it to false.")
        else:
            reading.ignore(key, f"{what} come with the checkpoint, and one that has any is refused when it is loaded")
    if any(value is not None for value in on.values()):
        _four_bits_by_low_resource(reading, section, "recsys-08")


def take_pruned_model(reading: Reading, section: str) -> None:
    """cv-18: a pruned model takes the place of the language model."""
    found, path = reading.pop(f"{section}.pruned_path")
    if not found or is_off(path):
        return
    model = reading.holder(section)
    other = model.get("llama_path")
    if not reading.is_overridden(f"{section}.llama_path"):
        model["llama_path"] = path
        reading.origins[f"{section}.llama_path"] = reading.written(f"{section}.pruned_path")
        reading.note(f"{section}.pruned_path", f"it is the language model, in place of {other}, as in cv-18's code")


def read_distillation_of_one_section(reading: Reading) -> None:
    """cv-18: student and teacher in one section, the teacher's paths next to the student's."""
    model = reading.holder("model")
    if model is None:
        return
    names = ("ckpt_teacher", "ckpt_student", "teacher_llama_path", "teacher_whisper_path", "teacher_paths")
    names += ("alpha", "temperature", "lambda")
    asked = reading.switch("model.kd")
    taken = {name: model.pop(name) for name in names if name in model}
    if not is_off(taken.get("ckpt_student")):
        reading.put("model.ckpt", taken["ckpt_student"], "model.ckpt_student")
    if asked is False or (asked is None and is_off(taken.get("ckpt_teacher"))):
        for name in [name for name in ("kd", *taken) if name != "kd" or asked is False]:
            reading.ignore(f"model.{name}", "distillation is off")
        return
    if taken.get("teacher_paths"):
        reading.refuse(
            "model.teacher_paths",
            "a teacher that is a language model alone is not supported; give distillation.teacher, a whole audio model "
            "with its adapter, or model.kd: false.",
        )
        return
    _make_teacher(reading, model, taken)


def _make_teacher(reading: Reading, model: dict[str, Any], taken: dict[str, Any]) -> None:
    distillation = reading.given.setdefault("distillation", {})
    if distillation.get("teacher") is None:
        distillation["teacher"] = {**copy.deepcopy(model), "ckpt": None}
        for name, ours in (("teacher_llama_path", "llama_path"), ("teacher_whisper_path", "whisper_path")):
            if not is_off(taken.get(name)):
                distillation["teacher"][ours] = taken[name]
                reading.origins[f"{TEACHER}.{ours}"] = f"model.{name}"
        if not is_off(taken.get("ckpt_teacher")):
            distillation["teacher"]["ckpt"] = taken["ckpt_teacher"]
            reading.origins[f"{TEACHER}.ckpt"] = "model.ckpt_teacher"
    alpha = taken.get("alpha")
    if isinstance(alpha, int | float) and not isinstance(alpha, bool):
        distillation.setdefault("labels", alpha)
        distillation.setdefault("logits", round(1 - alpha, 12))
        reading.origins.update({f"distillation.{name}": "model.alpha" for name in ("labels", "logits")})
    elif alpha is not None:
        reading.refuse("model.alpha", f"expected a number, found {shown(alpha)}")
    if taken.get("temperature") is not None:
        distillation.setdefault("temperature", taken["temperature"])
        reading.origins["distillation.temperature"] = "model.temperature"
    distillation.setdefault("qformer", 0.0)  # that code compares labels and logits alone
    terms = ", ".join(
        f"{name} {distillation[name]}" for name in ("labels", "logits", "temperature") if name in distillation
    )
    quantised = (
        "" if model.get("quantization") else "; its code loads the student in 8 bits, which model.quantization asks for"
    )
    reading.note("model.kd", f"distillation.teacher is the teacher, with {terms}, as in cv-18's code{quantised}")


def read_quantisation(reading: Reading, section: str) -> None:
    """The family's spellings of `quantization`."""
    model = reading.holder(section)
    if isinstance(model.get("quantization"), bool) and not model["quantization"]:
        model["quantization"] = "none"
    _four_bit_type(reading, section)
    _quantisation_methods(reading, section)
    if "adapter" in model or "lora_16bit" in model:
        _four_bits_by_low_resource(reading, section, "cv-20")
    for switch, back_end in SWITCHES.items():
        key = f"{section}.{switch}"
        if reading.switch(key):
            _quantise(reading, section, key, "true", back_end)
            if switch == "Low_resource":
                reading.note(key, "read as low_resource; cv-21's code looks for that name alone, and does not quantise")


SWITCHES = {
    "qlora": "nf4",
    "load_in_4bit": "nf4",
    "quant_4bit": "nf4",
    "low_resource": "int8",
    "Low_resource": "int8",
    "load_in_8bit": "int8",
    "quant_8bit": "int8",
}
"""Switch of the family -> `quantization`."""
METHODS = {"qlora": "nf4", "nf4": "nf4", "bnb": "nf4", "int8": "int8", "gptq": "gptq"}
"""Method in cv-13's files -> `quantization`."""


def _quantise(reading: Reading, section: str, key: str, value: str, back_end: str) -> None:
    model = reading.holder(section)
    present = model.get("quantization")
    if reading.is_overridden(f"{section}.quantization"):
        return
    if present not in (None, back_end) and not reading.is_overridden(key):
        reading.refuse(key, f"{value} means quantization: {back_end}, but the file also asks for {present}; keep one")
    model["quantization"] = back_end


def _four_bit_type(reading: Reading, section: str) -> None:
    key = f"{section}.bnb_4bit_quant_type"
    found, kind = reading.pop(key)
    if found and kind not in (None, "", "nf4"):
        reading.refuse(key, f"expected nf4, the type of 4-bit weights here, found {shown(kind)}.")


def _quantisation_methods(reading: Reading, section: str) -> None:
    """cv-13's `quant_method`, which says how where `low_resource` says whether; `use_ptq` is a step after training."""
    for name in ("use_ptq", "ptq_method"):
        if reading.pop(f"{section}.{name}")[0]:
            reading.ignore(f"{section}.{name}", "quantising after training is a step of its own: tools/quantize.py")
    key, switch = f"{section}.quant_method", f"{section}.low_resource"
    found, method = reading.pop(key)
    if not found or is_off(method):
        return
    if "low_resource" in reading.holder(section) and not reading.switch(switch):
        reading.ignore(key, "low_resource is off")
    elif method in METHODS:
        _quantise(reading, section, key, str(method), METHODS[method])
    else:
        reading.refuse(key, f"expected one of {', '.join(METHODS)}, or none, found {shown(method)}.")


def _four_bits_by_low_resource(reading: Reading, section: str, program: str) -> None:
    key = f"{section}.low_resource"
    model = reading.holder(section)
    if model.get("low_resource") is True and not reading.is_overridden(key):
        reading.switch(key)
        _quantise(reading, section, key, "true", "nf4")
        reading.note(key, f"4 bits (quantization: nf4), as in {program}'s code")


def take_over_defaults(reading: Reading, section: str) -> None:
    """BOS and layers of LoRA that some programs choose by model, where the file is recognisably theirs."""
    model = reading.holder(section)
    llm = str(model.get("llama_path") or "").lower()
    wrote = reading.found.get(f"{section}.llama_path", "")
    if (wrote.endswith(".qwen_path") or model.get("ced_path") in CED_NAMES) and "qwen" in llm:
        _take_over(
            reading, section, "nlp-07", bos_token="<|im_start|>", lora_target_modules=["q_proj", "v_proj", "gate_proj"]
        )
    if "qlora" in model and not reading.is_overridden(f"{section}.qlora"):
        # Token 151643, where a tokenizer has no BOS.
        bos = {"bos_token": "<|endoftext|>"} if "qwen" in llm and "deepseek" not in llm else {}
        _take_over(reading, section, "cv-16", lora_target_modules=list(ALL_LINEAR), **bos)
    if "gemma" in llm:
        if "adapter" in model or "lora_16bit" in model:
            _take_over(reading, section, "cv-20", lora_target_modules=list(ALL_LINEAR))
        elif reading.found.get(f"{section}.speech_llama_proj_model", "").endswith(".speech_llm_proj_model"):
            _take_over(reading, section, "cv-13", lora_target_modules=list(ALL_LINEAR[:4]))
    if "vllm" in model and not (model.get("quantization") or model.get("low_resource")):
        reading.note(
            section,
            "nlp-12's code quantises the language model to 4 bits whatever its file says, which this program does "
            "only with model.quantization: nf4",
        )


def _take_over(reading: Reading, section: str, program: str, **defaults: Any) -> None:
    model = reading.holder(section)
    missing = {name: value for name, value in defaults.items() if name not in model}
    model.update(missing)
    if missing:
        values = ", ".join(f"{name}: {value}" for name, value in missing.items())
        reading.note(section, f"{values}, as in {program}'s code, because the file does not say")


def read_encoders(reading: Reading, section: str) -> None:
    """Encoders that replace another and use its switches: CED for BEATs, Canary's for Whisper."""
    model = reading.holder(section)
    if reading.switch(f"{section}.use_beats") is False:
        model["beats_path"] = None
    name = model.get("ced_path")
    if name in CED_NAMES and not Path(name).exists():
        model["ced_path"] = CED_NAMES[name]
    if name and not model.get("beats_path") and "freeze_beats" in model:
        model.setdefault("freeze_ced", model["freeze_beats"])
    if name and reading.found.get(f"{section}.ced_path", "").endswith(".Ced_path"):
        reading.note(f"{section}.ced_path", "frozen as a whole; cv-13's code trains low-rank adapters in it")
    written = reading.found.get(f"{section}.parakeet_path", "")
    if written.endswith((".canary_path", "canary.model_name")) and model.get("parakeet_path"):
        if "freeze_whisper" in model:
            model.setdefault("freeze_parakeet", model["freeze_whisper"])
        if model.get("whisper_path") and not reading.is_overridden(f"{section}.whisper_path"):
            model["whisper_path"] = None
            reading.ignore(f"{section}.whisper_path", "Canary's encoder replaces Whisper")


def read_kind_of_model(reading: Reading, section: str) -> None:
    """Switches that choose among the file's own keys: the language model by `model_type`, the type by `use_bf16`."""
    model = reading.holder(section)
    found, kind = reading.pop(f"{section}.model_type")
    llama3 = reading.pop(f"{section}.llama3_path")[1]
    if found:
        if kind == "llama3" and not is_off(llama3) and not reading.is_overridden(f"{section}.llama_path"):
            model["llama_path"] = llama3
            reading.origins[f"{section}.llama_path"] = reading.written(f"{section}.llama3_path")
        reading.ignore(f"{section}.model_type", "a language model's folder says what it is")
    elif not is_off(llama3):
        reading.put(f"{section}.llama_path", llama3, f"{section}.llama3_path")
    if reading.switch(f"{section}.use_bf16"):
        reading.put(f"{section}.dtype", "bfloat16", f"{section}.use_bf16")
    if reading.pop(f"{section}.autocast_dtype")[0]:
        reading.ignore(f"{section}.autocast_dtype", "the type of a training step follows run.amp and model.dtype")
