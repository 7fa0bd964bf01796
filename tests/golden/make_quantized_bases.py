"""Makes quantized_bases/: small models as GGUF files and as folders of packed safetensors, and what others read out of them.

    PYTHONPATH=FOLDER_OF_BITSANDBYTES python make_quantized_bases.py

GGUF files are written by gguf 0.19 and read by Transformers 4.57.6; `bitsandbytes/` is packed and widened by bitsandbytes 0.50.2 on the CPU;
GPTQ and AWQ are stated in NumPy here. `expected.json` has the first 16 digits of the SHA-256 of the f32 values of each tensor (Hugging Face's name, `[d_out, d_in]`), and
of each model that Transformers runs the logits of `input_ids`.
"""

import hashlib
import json
import pathlib
import shutil
import tempfile

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM

FOLDER = pathlib.Path(__file__).parent / "quantized_bases"
random = np.random.default_rng(29)
torch.manual_seed(29)
expected = {}


def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values, dtype="<f4").tobytes()).hexdigest()[:16]


def describe(model, tensors):
    """Hashes of tensors, and the logits of a model that holds them."""
    ids = torch.arange(1, 8).reshape(1, -1)
    with torch.no_grad():
        logits = model.double()(ids).logits[0]
    return {
        "tensors": {name: digest(value) for name, value in sorted(tensors.items())},
        "input_ids": ids[0].tolist(),
        "logits": [[round(value, 6) for value in row] for row in logits.tolist()],
    }


# --- GGUF ---


def blocks(kind, shape):
    """A tensor of finite values: what gguf packs, or for formats that it cannot pack, random blocks with small scales."""
    rows, columns = shape
    values = (random.standard_normal(shape) * 0.2).astype(np.float32)
    if kind in (Type.F32, Type.F16):
        return values.astype(np.float32 if kind == Type.F32 else np.float16)
    if kind not in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        return quantize(values, kind)
    count, size = GGML_QUANT_SIZES[kind]
    packed = random.integers(0, 256, (rows, columns // count, size), dtype=np.uint8)
    halves = np.frombuffer(np.float16([0.0007, 0.003]).tobytes(), np.uint8)
    if kind == Type.Q6_K:
        packed[:, :, -2:] = halves[:2]
    else:
        packed[:, :, :4] = halves
    return packed.reshape(rows, -1)


def byte_pairs(writer):
    """24 tokens of GPT-2's kind."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|end|>", "<|user|>", *"abcdeghilnorst", "\u0120", "\u010a", "he", "\u0120t", "\u0120the", "in", "er", "on"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * 22)
    writer.add_token_merges(["h e", "\u0120 t", "\u0120t he", "i n", "e r", "o n"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}")


def sentence_piece(writer):
    """24 tokens of SentencePiece's kind."""
    writer.add_tokenizer_model("llama")
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<0x0A>", "\u2581", *"abcdehinorst", "he", "\u2581t", "\u2581the", "in", "er", "on"]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 6 + [-1000.0 - i for i in range(12)] + [-2.0, -1.0, -3.0, -4.0, -5.0, -6.0])
    writer.add_token_types([3, 3, 3, 2, 6] + [1] * 19)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)


def gguf_model(name, architecture, kinds, sizes, tokenizer=None):
    """Writes a model of one block whose matrices have the `kinds` in turn."""
    hidden, inner, heads, kv_heads, head_dim, vocabulary = sizes
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", architecture)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(vocabulary)
    if architecture in ("gemma2", "gemma3"):
        writer.add_sliding_window(4)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if tokenizer:
        tokenizer(writer)
    kinds = iter(kinds)

    def matrix(name, rows, columns):
        kind = next(kinds)
        if columns % GGML_QUANT_SIZES[kind][0]:
            kind = Type.F16
        writer.add_tensor(f"{name}.weight", blocks(kind, (rows, columns)), raw_dtype=kind)

    def vector(name, width, mean=1.0):
        values = (mean + random.standard_normal(width) * 0.1).astype(np.float32)
        writer.add_tensor(name, values, raw_dtype=Type.F32)

    q, kv = heads * head_dim, kv_heads * head_dim
    matrix("token_embd", vocabulary, hidden)
    vector("blk.0.attn_norm.weight", hidden)
    if architecture == "phi3":
        matrix("blk.0.attn_qkv", q + 2 * kv, hidden)
    else:
        matrix("blk.0.attn_q", q, hidden)
        matrix("blk.0.attn_k", kv, hidden)
        matrix("blk.0.attn_v", kv, hidden)
    if architecture == "qwen2":
        for part, width in (("q", q), ("k", kv), ("v", kv)):
            vector(f"blk.0.attn_{part}.bias", width, 0.0)
    if architecture in ("qwen3", "gemma3"):
        vector("blk.0.attn_q_norm.weight", head_dim)
        vector("blk.0.attn_k_norm.weight", head_dim)
    matrix("blk.0.attn_output", hidden, q)
    if architecture in ("gemma2", "gemma3"):
        vector("blk.0.post_attention_norm.weight", hidden)
    vector("blk.0.ffn_norm.weight", hidden)
    if architecture == "phi3":
        matrix("blk.0.ffn_up", 2 * inner, hidden)
    else:
        matrix("blk.0.ffn_gate", inner, hidden)
        matrix("blk.0.ffn_up", inner, hidden)
    matrix("blk.0.ffn_down", hidden, inner)
    if architecture in ("gemma2", "gemma3"):
        vector("blk.0.post_ffw_norm.weight", hidden)
    vector("output_norm.weight", hidden)
    if not architecture.startswith("gemma"):
        matrix("output", vocabulary, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    # Transformers leaves these fields at the published sizes.
    fields = {"head_dim": head_dim, "pad_token_id": None}
    if architecture in ("gemma2", "gemma3"):
        fields["query_pre_attn_scalar"] = head_dim
    if architecture == "gemma2":
        fields |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    if architecture == "gemma":
        model = first_gemma(name, sizes)
    else:
        config = AutoConfig.from_pretrained(FOLDER, gguf_file=f"{name}.gguf")
        for field, value in fields.items():
            setattr(config, field, value)
        model = AutoModelForCausalLM.from_pretrained(
            FOLDER, gguf_file=f"{name}.gguf", config=config, torch_dtype=torch.float32, attn_implementation="eager"
        )
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    expected[name] = describe(model, tensors)


def first_gemma(name, sizes):
    """Transformers does not read the first Gemma from GGUF: its tensors are given to it."""
    hidden, inner, heads, kv_heads, head_dim, vocabulary = sizes
    config = GemmaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=1, num_attention_heads=heads, rms_norm_eps=1e-5,
        num_key_value_heads=kv_heads, head_dim=head_dim, vocab_size=vocabulary, max_position_embeddings=64,
        attn_implementation="eager",
    )
    names = {
        "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }
    model = GemmaForCausalLM(config)
    state = {}
    for tensor in gguf.GGUFReader(FOLDER / f"{name}.gguf").tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        path = tensor.name.removesuffix(".weight").replace("blk.0.", "")
        layer = "layers.0." if tensor.name.startswith("blk.") else ""
        if path.endswith("norm"):
            values = values - 1
        state[f"model.{layer}{names[path]}.weight"] = torch.from_numpy(np.array(values))
    model.load_state_dict(state, strict=False)
    return model


# --- folders ---

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 24,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
SHAPES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
}


def folder_model(name, quantization, pack):
    """Writes a folder. `pack(module, values)` gives the tensors in the file and the values of the weight that they stand for."""
    folder = FOLDER / name
    folder.mkdir()
    dense = {
        "model.embed_tokens.weight": torch.randn(24, 32) * 0.2,
        "lm_head.weight": torch.randn(24, 32) * 0.2,
        "model.norm.weight": 1 + torch.randn(32) * 0.1,
        "model.layers.0.input_layernorm.weight": 1 + torch.randn(32) * 0.1,
        "model.layers.0.post_attention_layernorm.weight": 1 + torch.randn(32) * 0.1,
    }
    dense = {key: value.bfloat16() for key, value in dense.items()}
    files, values = dict(dense), {key: value.float() for key, value in dense.items()}
    for module, shape in SHAPES.items():
        more, values[f"model.layers.0.{module}.weight"] = pack(module, torch.randn(shape) * 0.2)
        files |= {f"model.layers.0.{module}.{key}": value.contiguous() for key, value in more.items()}
    save_file(files, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": quantization}, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as place:
        pathlib.Path(place, "config.json").write_text(json.dumps(CONFIG))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place), attn_implementation="eager")
    model.float().load_state_dict(values)
    expected[name] = describe(model, {key: value.numpy() for key, value in values.items()})


def bitsandbytes(module, values):
    """Every kind of packed weight that bitsandbytes writes, one a module; one module stays dense."""
    import bitsandbytes.functional as bnb

    kinds = {
        "self_attn.q_proj": ("nf4", True, torch.bfloat16, torch.uint8),
        "self_attn.k_proj": ("fp4", False, torch.float16, torch.uint8),
        "self_attn.v_proj": ("nf4", False, torch.float32, torch.bfloat16),
        "self_attn.o_proj": ("fp4", True, torch.float32, torch.float16),
        "mlp.gate_proj": ("nf4", True, torch.float16, torch.float32),
        "mlp.up_proj": ("nf4", True, torch.bfloat16, torch.bfloat16),
    }
    if module not in kinds:
        values = values.bfloat16()
        return {"weight": values}, values.float()
    book, nested, dtype, storage = kinds[module]
    codes, state = bnb.quantize_4bit(
        values.to(dtype), blocksize=64, compress_statistics=nested, quant_type=book, quant_storage=storage
    )
    files = {"weight": codes} | {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    # The kernel of the CPU takes rows of 32 for whole blocks, those of GPUs do not: as one row, both agree.
    shape, state.shape = values.shape, torch.Size([values.numel()])
    return files, bnb.dequantize_4bit(codes, state).float().reshape(shape)


def packed_words(codes, bits):
    """Codes along the first axis in words of 32 bits, the lowest first."""
    each = 32 // bits
    words = np.zeros((codes.shape[0] // each, codes.shape[1]), np.uint32)
    for place in range(each):
        words |= codes[place::each].astype(np.uint32) << np.uint32(bits * place)
    return torch.from_numpy(words.view(np.int32).copy())


def gptq(bits, version, group, order):
    """W[i, o] = scales[g_idx[i], o] * (q[i, o] - z[g_idx[i], o])."""

    def pack(module, values):
        weight = values.numpy().T  # [in, out]
        inputs, outputs = weight.shape
        size = inputs if group == -1 else group
        groups = inputs // size
        g_idx = np.arange(inputs, dtype=np.int32) // size
        if order:
            g_idx = random.permutation(g_idx).astype(np.int32)
        top = 2**bits - 1
        # A zero point of 0 cannot be stored in the first format: it would be -1.
        zeros = random.integers(1, top, (groups, outputs))
        scales = (random.random((groups, outputs)) * 0.05 + 0.01).astype(np.float16)
        codes = np.clip(np.round(weight / scales[g_idx].astype(np.float32)) + zeros[g_idx], 0, top).astype(np.int64)
        stored = zeros - (1 if version == "gptq" else 0)
        files = {
            "qweight": packed_words(codes, bits),
            "qzeros": packed_words(stored.T, bits).T,
            "scales": torch.from_numpy(scales),
            "g_idx": torch.from_numpy(g_idx),
        }
        values = scales[g_idx].astype(np.float32) * (codes - zeros[g_idx]).astype(np.float32)
        return files, torch.from_numpy(np.ascontiguousarray(values.T))

    return pack


def awq(module, values):
    """(q - z) s, eight codes of outputs in a word in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    weight, group = values.numpy().T, 16
    inputs, outputs = weight.shape
    g_idx = np.arange(inputs) // group
    zeros = random.integers(0, 16, (inputs // group, outputs))
    scales = (random.random((inputs // group, outputs)) * 0.05 + 0.01).astype(np.float16)
    codes = np.clip(np.round(weight / scales[g_idx].astype(np.float32)) + zeros[g_idx], 0, 15).astype(np.int64)

    def words(codes):
        found = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
        for place, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            found |= codes[:, output::8].astype(np.uint32) << np.uint32(4 * place)
        return torch.from_numpy(found.view(np.int32).copy())

    values = scales[g_idx].astype(np.float32) * (codes - zeros[g_idx]).astype(np.float32)
    files = {"qweight": words(codes), "qzeros": words(zeros), "scales": torch.from_numpy(scales)}
    return files, torch.from_numpy(np.ascontiguousarray(values.T))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    small, wide = (32, 64, 4, 2, 8, 24), (256, 4, 2, 1, 4, 8)
    for kind in (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.BF16):
        gguf_model(f"llama-{kind.name.lower()}", "llama", [kind] * 9, small)
    for kind in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        gguf_model(f"llama-{kind.name.lower()}", "llama", [kind] * 9, wide)
    mixed = [Type.Q8_0, Type.F16, Type.F32, Type.Q5_0, Type.Q4_1, Type.Q4_0, Type.Q8_0, Type.Q5_1, Type.F16]
    gguf_model("llama-mixed", "llama", mixed, small, byte_pairs)
    for architecture in ("qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"):
        tokenizer = sentence_piece if architecture == "gemma3" else None
        gguf_model(architecture, architecture, [Type.Q8_0, Type.Q4_0] * 5, small, tokenizer)
    bnb = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": ["lm_head", "down_proj"],
    }
    folder_model("bitsandbytes", bnb, bitsandbytes)
    for name, bits, version, group, order in (
        ("gptq-4-order", 4, "gptq", 16, True),
        ("gptq-4-v2", 4, "gptq_v2", 16, False),
        ("gptq-8", 8, "gptq", -1, False),
    ):
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": False}
        folder_model(name, config | {"checkpoint_format": version}, gptq(bits, version, group, order))
    config = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True}
    folder_model("awq", config, awq)
    lines = [f"{json.dumps(name)}: {json.dumps(model)}" for name, model in expected.items()]
    (FOLDER / "expected.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
