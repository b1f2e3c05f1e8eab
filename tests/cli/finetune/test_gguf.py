"""A decoder in a GGUF file, made here: it is read in float32 and trained, and stock PEFT loads its adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_cases import flags
from finetune_cases import SIZES, TINY, assert_adapted, stock_logits, tuned, write_csv

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
WIDTH, FFN, LAYERS = SIZES["hidden_size"], SIZES["intermediate_size"], SIZES["num_hidden_layers"]
HEADS = 2
TOKENS = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(ord("a"), ord("z") + 1)), "Ġ", "th"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in float16, with the merges of its tokenizer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h"])
    for key, number in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{key}_token_id")(number)
    draw = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        writer.add_tensor(f"{name}.weight", (0.3 * draw.standard_normal((rows, columns))).astype(np.float16))

    matrix("token_embd", len(TOKENS), WIDTH)
    matrix("output", len(TOKENS), WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{layer}.{part}", WIDTH, WIDTH)
        for part, rows, columns in (("ffn_gate", FFN, WIDTH), ("ffn_up", FFN, WIDTH), ("ffn_down", WIDTH, FFN)):
            matrix(f"blk.{layer}.{part}", rows, columns)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # which PEFT asks for
def test_a_gguf_file_is_trained_and_its_adapter_loads(file, cli, tmp_path):
    texts = [(f"the {chr(97 + i % 26)}th{chr(97 + i % 7)}", "one") for i in range(40)]
    rows = write_csv(tmp_path / "rows.csv", texts)
    options = ["finetune", "--model", file, "--data", rows, "--task", "causal-lm", *TINY, *flags(steps=2)]
    outcome = cli(*options, "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    run = tuned(tmp_path / "run")
    kinds = {str(parameter.dtype) for parameter in run.model.parameters()}
    assert kinds == {"torch.float32"}
    auto, more = transformers.AutoModelForCausalLM, {"gguf_file": file.name}
    assert_adapted(*stock_logits(run, file.parent, tmp_path / "run", auto, **more))
