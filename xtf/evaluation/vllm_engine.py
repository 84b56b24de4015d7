"""Generation by vLLM (`evaluate.backend=vllm`, extra `vllm`): the same prompts, stops and settings, its own kernels.

vLLM batches by itself; `trainer.tokens_per_eval_batch` says how much is generated between two points that a killed
evaluation goes on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.schema import Config
from xtf.runtime.artifacts import check_model, read_json
from xtf.runtime.models import inference_dtype, location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from xtf.evaluation.decoding import Decoding


class VLLMEngine:
    """A model in a vLLM engine; `xtf.evaluation.evaluate.generate` takes it in place of a transformers model."""

    def __init__(self, config: Config, longest: int, folder: Path | None = None) -> None:
        """The base model, or the fine-tuned one in `folder` (an adapter there is served on the base model).

        Args:
            longest: tokens of the longest prompt, which with the new tokens decides the size of the KV cache.
        """
        from vllm import LLM

        if folder is not None:
            check_model(folder)
        settings: dict[str, Any] = {"model": location(config.model), "revision": config.model.revision}
        self._adapter = None
        if folder is not None and (folder / "adapter_config.json").exists():
            from vllm.lora.request import LoRARequest

            self._adapter = LoRARequest("tuned", 1, str(folder))
            rank = read_json(folder / "adapter_config.json")["r"]
            settings |= {"enable_lora": True, "max_lora_rank": max(8, 2 ** (rank - 1).bit_length())}
        elif folder is not None:
            settings = {"model": str(folder)}
        self._engine = LLM(
            dtype=str(inference_dtype(config.trainer)).removeprefix("torch."),
            max_model_len=longest + config.task.max_new_tokens,
            gpu_memory_utilization=config.evaluate.vllm_memory,
            **settings,
        )

    def complete(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        decoding: Decoding,
        stop: Sequence[str],
        seeds: Sequence[int],
    ) -> list[str]:
        """Completions of token-id prompts, one seed for each; they end at EOS, and text after a `stop` is cut."""
        from vllm import SamplingParams

        from xtf.data.encode import decode_response
        from xtf.data.templates import turn_end

        ends = {tokenizer.eos_token_id, turn_end(tokenizer)} - {None}

        settings = [
            SamplingParams(
                max_tokens=decoding.max_new_tokens,
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                seed=seed,
                stop=list(stop) or None,
                stop_token_ids=sorted(ends),
            )
            for seed in seeds
        ]
        tokens = [{"prompt_token_ids": list(ids)} for ids in prompts]
        answers = self._engine.generate(tokens, settings, use_tqdm=False, lora_request=self._adapter)
        texts = [decode_response(tokenizer, list(answer.outputs[0].token_ids)) for answer in answers]
        for mark in stop:
            texts = [text.split(mark, 1)[0] for text in texts]
        return texts
