"""transformers' small text models with random weights, as folders with a tokenizer of their own."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
MARKS = (BOS, EOS, "<｜User｜>", "<｜Assistant｜>")
THINK = ("<think>", "</think>")
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")
DEEPSEEK = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""The published vocabularies' patterns."""

_SMALL = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 1024}
_DENSE = {**_SMALL, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
_LATENT = {
    **_SMALL, "intermediate_size": 96, "moe_intermediate_size": 32, "num_attention_heads": 4,
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "num_experts_per_tok": 4,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 128,
         "beta_fast": 32, "beta_slow": 1}  # fmt: skip
_V3 = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_nextn_predict_layers": 1}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {**_DENSE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    "qwen2-tied": ("Qwen2", {**_DENSE, "tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {**_DENSE, "rope_parameters": _YARN}),
    "llama": ("Llama", _DENSE),
    "llama3": ("Llama", {**_DENSE, "head_dim": 24, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 128}}),
    "llama-linear": ("Llama", {**_DENSE, "rope_parameters": {
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
    "deepseek_v3": ("DeepseekV3", {**_LATENT, **_V3, "rope_parameters": {
        **_YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}),
    "deepseek_v3-plain": ("DeepseekV3", {**_LATENT, **_V3, "q_lora_rank": None, "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0}}),
    "deepseek_v2": ("DeepseekV2", {**_LATENT, "n_routed_experts": 16, "q_lora_rank": None,
        "n_shared_experts": 2, "topk_method": "greedy", "n_group": 1, "topk_group": 1, "rope_parameters": {
        **_YARN, "mscale": 0.707, "mscale_all_dim": 0.707}}),
}  # fmt: skip


def make_tokenizer(pattern: str | tuple[str, ...] = QWEN, think: bool = True) -> Tokenizer:
    """A byte-level tokenizer with DeepSeek's marks, of 300 tokens learned from a sentence."""
    tokenizer = Tokenizer(models.BPE())
    patterns = (pattern,) if isinstance(pattern, str) else pattern
    if pattern == QWEN:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(one), "isolated") for one in patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["what is the sum of the first ten numbers? the sum is 55."], trainer)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    if think:
        tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in THINK])
    return tokenizer


def make_model(kind: str) -> Any:
    """transformers' model of a kind of `SIZES`, with random weights that matter."""
    import transformers

    name, sizes = SIZES[kind]
    torch.manual_seed(sum(map(ord, kind)))
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    for path, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if path.endswith(("bias", "norm.weight")):
            tensor.data.normal_(1.0 if "norm" in path else 0.0, 0.2)
        elif tensor.ndim > 1:
            tensor.data.normal_(0.0, 0.4 if "embed" in path else 1.2 * tensor.shape[-1] ** -0.5)
    return model


def add_ahead(path: Path) -> None:
    """Add a layer for multi-token prediction, with random weights, after the three of a model."""
    tensors = load_file(path)
    width = len(tensors["model.norm.weight"])
    ahead = {n: t for n, t in tensors.items() if n.startswith("model.layers.2.")}
    ahead = {n.replace(".2.", ".3.", 1): torch.randn_like(t) * t.std() for n, t in ahead.items()}
    for name in ("enorm", "hnorm", "shared_head.norm", "input_layernorm", "post_attention_layernorm"):
        ahead[f"model.layers.3.{name}.weight"] = 1 + 0.2 * torch.randn(width)
    ahead["model.layers.3.eh_proj.weight"] = torch.randn(width, 2 * width) * width**-0.5
    ahead["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    ahead["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file({**tensors, **ahead}, path, metadata={"format": "pt"})


def make_folder(folder: Path, kind: str, **files: dict[str, Any]) -> tuple[Path, Any]:
    """The folder with such a model, and the model. `files` are other JSON files, by their stems."""
    model = make_model(kind)
    model.save_pretrained(folder)
    if kind == "deepseek_v3":
        add_ahead(folder / "model.safetensors")
    make_tokenizer(DEEPSEEK if "deepseek" in kind else LLAMA if "llama" in kind else QWEN).save(
        str(folder / "tokenizer.json")
    )
    files = {"generation_config": {"do_sample": True, "temperature": 0.6, "top_p": 0.95}, **files}
    for stem, content in files.items():
        (folder / f"{stem}.json").write_text(json.dumps(content, ensure_ascii=False))
    return folder, model
