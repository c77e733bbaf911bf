"""Tiny models that write nonsense, made in a second, and a server that runs one: what the tests of generators stand on."""

import asyncio
import json
import sys
import time
from pathlib import Path

TEXT = ["The cat sat on the mat. The dog ran to the house, and the bird flew over the tree.",
        "Question: who sat on the mat? Answer: the cat. <passage n=\"1\" title=\"\"> </passage> User: Assistant:"]
CHAT = ("{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}")
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT


def make_tokenizer(template: str | None):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer, bare.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bare.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet))
    made = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", eos_token="<eos>",
                                   additional_special_tokens=special[2:])
    made.chat_template = template
    return made


def make_model(folder: Path, kind: str = "causal", template: str | None = CHAT, context: int = 1024) -> Path:
    "Save a random two-layer Llama or T5 with its tokenizer."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    tokenizer = make_tokenizer(template)
    common = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(7)
    if kind == "causal":
        config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, bos_token_id=None,
                             max_position_embeddings=context, **common)
        model = LlamaForCausalLM(config)
    else:
        config = T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0,
                          n_positions=context, **common)
        model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3)  # sharper: greedy decoding does not sit on ties
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def app(folder: str):
    "A server for the model in a folder. Other paths than /v1 misbehave, each in its way."
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.concurrency import run_in_threadpool

    from nlp_portfolio.llm.generators import Prompt, load_model

    api, model, seen = FastAPI(), load_model(folder), {"busy": 0, "date": 0, "open": 0, "closed": 0, "whole": 0}
    api.state.seen = seen

    def answer(body: dict):
        *before, last = body["messages"]
        system = before[0]["content"] if before and before[0]["role"] == "system" else ""
        history = tuple((one["role"], one["content"]) for one in before if one["role"] != "system")
        wish = {name: body[name] for name in ("max_tokens", "temperature", "seed", "stop") if name in body}
        prompt = Prompt(last["content"], system=system, history=history)
        if not body.get("stream"):
            found = model.generate(prompt, **wish)
            return {"choices": [{"message": {"role": "assistant", "content": found.text}, "finish_reason": found.finish}],
                    "usage": {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens}}
        stream = model.stream(prompt, **wish)

        async def events():  # asynchronous, so that whoever leaves cancels it at once, in the step it is in
            seen["open"] += 1
            try:
                while (piece := await run_in_threadpool(next, stream, None)) is not None:
                    yield f"data: {json.dumps({'choices': [{'delta': {'content': piece}}]})}\n\n"
                    await asyncio.sleep(body.get("seed") == 77 and .1)
                found = stream.result
                yield f"data: {json.dumps({'choices': [{'delta': {}, 'finish_reason': found.finish}]})}\n\n"
                usage = {"prompt_tokens": found.prompt_tokens, "completion_tokens": found.completion_tokens}
                yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
                seen["whole"] += 1
            finally:
                stream.close()
                seen["closed"] += 1

        return StreamingResponse(events(), media_type="text/event-stream")

    @api.get("/{way}/models")
    def models(way: str):
        return {"data": [] if way == "empty" else [{"id": "tiny"}]}

    @api.get("/seen")
    def what_was_seen():
        return seen

    @api.post("/{way}/chat/completions")
    def chat(way: str, body: dict, request: Request):
        key = request.headers.get("authorization", "")
        if way == "locked" and key != "Bearer right-key":
            return JSONResponse({"error": f"wrong key {key}"}, 401)
        if way in ("busy", "date", "always"):
            seen[way] = seen.get(way, 0) + 1
            if seen[way] == 1 or way == "always":
                after = {"busy": "0.2", "date": "Thu, 01 Jan 1970 00:00:00 GMT", "always": "0"}[way]
                return JSONResponse({"error": "busy"}, 429 if way == "busy" else 503, headers={"Retry-After": after})
        if way == "slow":
            time.sleep(3)
        if way == "drip":
            return StreamingResponse((b" " for _ in iter(lambda: time.sleep(.1), 1)), media_type="application/json")
        if way == "huge":
            return StreamingResponse((b"x" * 10**6 for _ in range(100)), media_type="application/json")
        if way == "broken":
            half = b'data: {"choices": [{"delta": {"content": "Hal"}}]}\n\n'
            return StreamingResponse(iter([half]), media_type="text/event-stream")
        if way == "error":
            return JSONResponse({"error": f"no such model; your key is {key}"}, 400)
        garbage = {"html": "<html>hello</html>", "list": "[1]", "nochoice": "{}",
                   "odd": '{"choices": [{"message": {"content": 5}}]}',
                   "deep": "[" * 10**5, "cut": '{"choices": [{"mess', "none": '{"choices": [{"message": {"content": null}}]}'}
        if way in garbage:
            return PlainTextResponse(garbage[way])
        return answer(body)

    return api


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
