"""What the official client finds at an endpoint; true of any sane model.

    openai_client.py --base-url http://127.0.0.1:8000/v1 --model echo [--chat-model echo] [--embed-model embed] [--key KEY]

Without --embed-model, embeddings are skipped. With a wrong key the server must refuse, if --key is given. Prints a line for each check
and ends with status 1 at the first that fails.
"""

import argparse
import math

import openai

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def refused(kind, call, param=None):
    """The error that a call must end in."""
    try:
        call()
    except openai.APIStatusError as error:
        assert isinstance(error, kind), f"{type(error).__name__} instead of {kind.__name__}: {error}"
        body = error.body
        assert isinstance(body, dict) and {"message", "type", "param", "code"} <= set(body), body
        assert body["message"] and (param is None or body["param"] == param), body
        return error
    raise AssertionError(f"not refused with {kind.__name__}")


def complete(client, args, **more):
    more = {"prompt": "Once upon a time, there was a", "max_tokens": 24, "temperature": 0} | more
    return client.completions.create(model=args.model, **more)


def chat(client, args, **more):
    messages = [{"role": "user", "content": "Tell me a short story about a cat."}]
    more = {"messages": messages, "max_completion_tokens": 24, "temperature": 0} | more
    return client.chat.completions.create(model=args.chat_model, **more)


def check_usage(usage):
    assert usage.prompt_tokens > 0 and usage.completion_tokens >= 0, usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens, usage


@check
def models_are_listed(client, args):
    ids = [model.id for model in client.models.list()]
    for name in {args.model, args.chat_model} - {None}:
        assert name in ids, f"{name} is not in {ids}"
        assert client.models.retrieve(name).id == name


@check
def a_completion_adds_up(client, args):
    answer = complete(client, args)
    assert answer.object == "text_completion" and answer.model == args.model and answer.system_fingerprint, answer
    assert answer.choices[0].finish_reason in ("stop", "length"), answer
    check_usage(answer.usage)
    assert answer.usage.completion_tokens <= 24
    if answer.choices[0].finish_reason == "length":
        assert answer.usage.completion_tokens == 24, answer.usage


@check
def greedy_repeats(client, args):
    first, second = complete(client, args), complete(client, args)
    assert first.choices[0].text == second.choices[0].text and first.id != second.id


@check
def a_streamed_completion_is_the_whole_one(client, args):
    whole = complete(client, args)
    chunks = list(complete(client, args, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].text, (text, whole.choices[0].text)
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason], reasons
    assert chunks[-1].choices == [] and all(chunk.usage is None for chunk in chunks[:-1])
    used, expected = chunks[-1].usage, whole.usage
    assert (used.prompt_tokens, used.completion_tokens) == (expected.prompt_tokens, expected.completion_tokens), (used, expected)


@check
def a_seed_repeats(client, args):
    ask = lambda seed: complete(client, args, temperature=1.0, seed=seed, n=2)
    texts = [[choice.text for choice in ask(seed).choices] for seed in (7, 7)]
    assert texts[0] == texts[1], texts
    others = [choice.text for seed in range(8) for choice in ask(seed).choices]
    assert len(set(others)) > 1, "eight seeds gave one text"


@check
def several_prompts_are_answered_as_alone(client, args):
    prompts = ["The little dog", "She opened the box and"]
    together = complete(client, args, prompt=prompts)
    assert [choice.index for choice in together.choices] == [0, 1]
    for choice, prompt in zip(together.choices, prompts):
        assert choice.text == complete(client, args, prompt=prompt).choices[0].text
    check_usage(together.usage)


@check
def a_stop_string_ends_the_text(client, args):
    text = complete(client, args).choices[0].text
    assert len(text) >= 3, f"the model says only {text!r}"
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    answer = complete(client, args, stop=[stop, "\x00never"])
    assert answer.choices[0].text == text[: text.index(stop)], (stop, text, answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"
    streamed = "".join(choice.text for chunk in complete(client, args, stop=stop, stream=True) for choice in chunk.choices)
    assert streamed == answer.choices[0].text


@check
def a_completion_lists_its_logprobs(client, args):
    answer = complete(client, args, logprobs=3)
    logprobs, text = answer.choices[0].logprobs, answer.choices[0].text
    count = len(logprobs.tokens)
    assert count == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) > 0
    assert all(number <= 0 for number in logprobs.token_logprobs)
    assert logprobs.text_offset == sorted(logprobs.text_offset) and logprobs.text_offset[0] == 0
    for number, top in zip(logprobs.token_logprobs, logprobs.top_logprobs):
        # Two tokens may look alike.
        assert 1 <= len(top) <= 3 and all(other <= 0 for other in top.values())
        assert math.isclose(number, max(top.values()), abs_tol=1e-3), "greedy takes the likeliest"
    if not any(token.startswith("bytes:") for token in logprobs.tokens):
        assert "".join(logprobs.tokens).startswith(text), (logprobs.tokens, text)


@check
def prompts_of_tokens_are_counted(client, args):
    assert complete(client, args, prompt=[1, 2, 3], max_tokens=1).usage.prompt_tokens == 3
    assert complete(client, args, prompt=[[1, 2, 3], [4, 5]], max_tokens=1, n=2).usage.prompt_tokens == 5


@check
def biases_are_taken(client, args):
    plain = complete(client, args).choices[0].text
    complete(client, args, logit_bias={str(token): -100 for token in range(200)})
    refused(openai.BadRequestError, lambda: complete(client, args, logit_bias={"x": 1}), "logit_bias")
    assert complete(client, args, logit_bias={}).choices[0].text == plain


@check
def the_extensions_are_taken(client, args):
    greedy = complete(client, args).choices[0].text
    extra = {"top_k": 1, "min_p": 0.1, "repetition_penalty": 1.0}
    assert complete(client, args, temperature=1.0, extra_body=extra).choices[0].text == greedy
    complete(client, args, extra_body={"never_heard_of": 1}, user="someone")


@check
def a_chat_adds_up(client, args):
    answer = chat(client, args)
    assert answer.object == "chat.completion" and answer.choices[0].message.role == "assistant", answer
    assert answer.choices[0].message.content is not None and answer.choices[0].finish_reason in ("stop", "length")
    check_usage(answer.usage)


@check
def a_streamed_chat_is_the_whole_one(client, args):
    for more in ({}, {"temperature": 1.0, "seed": 3, "n": 2}):
        whole = chat(client, args, **more)
        chunks = list(chat(client, args, stream=True, stream_options={"include_usage": True}, **more))
        for choice in whole.choices:
            parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
            assert parts[0].delta.role == "assistant"
            assert "".join(part.delta.content or "" for part in parts) == choice.message.content
            assert [part.finish_reason for part in parts if part.finish_reason] == [choice.finish_reason]
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


@check
def the_stream_helper_agrees(client, args):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]
    with client.chat.completions.stream(model=args.chat_model, messages=messages, max_completion_tokens=8, temperature=0) as stream:
        # Not get_final_completion: the helper takes a reached limit for an error.
        deltas = [event for event in stream if event.type == "content.delta"]
    said = "".join(event.delta for event in deltas)
    assert said == (deltas[-1].snapshot if deltas else "")
    assert said == (chat(client, args, messages=messages, max_completion_tokens=8).choices[0].message.content or "")


@check
def a_chat_lists_its_logprobs(client, args):
    answer = chat(client, args, logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert content
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 2
        assert math.isclose(token.logprob, token.top_logprobs[0].logprob, abs_tol=1e-3)
        assert token.token.startswith("bytes:") or token.bytes == list(token.token.encode())
    said = bytes(byte for token in content for byte in token.bytes).decode(errors="replace")
    assert said.strip().startswith(answer.choices[0].message.content.strip()), (said, answer.choices[0].message.content)
    streamed = chat(client, args, logprobs=True, top_logprobs=2, stream=True)
    listed = [token.token for chunk in streamed for part in chunk.choices if part.logprobs for token in part.logprobs.content or []]
    assert listed == [token.token for token in content]


@check
def errors_have_their_classes(client, args):
    refused(openai.NotFoundError, lambda: client.completions.create(model="no-such-model", prompt="a"), "model")
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"))
    refused(openai.BadRequestError, lambda: complete(client, args, temperature=9), "temperature")
    refused(openai.BadRequestError, lambda: complete(client, args, stop=["a"] * 5), "stop")
    refused(openai.BadRequestError, lambda: chat(client, args, messages=[]), "messages")
    refused(openai.BadRequestError, lambda: chat(client, args, response_format={"type": "json_object"}), "response_format")
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    refused(openai.BadRequestError, lambda: chat(client, args, tools=[tool]), "tools")
    error = refused(openai.BadRequestError, lambda: complete(client, args, prompt="word " * 200_000))
    assert error.code == "context_length_exceeded", error
    refused(openai.NotFoundError, lambda: client.get("/nothing", cast_to=object))
    assert error.request_id, "no x-request-id"


@check
def a_wrong_key_is_refused(client, args):
    if args.key is None:
        return "the server needs no key"
    refused(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list())


@check
def a_stream_can_be_left(client, args):
    for _ in range(3):
        stream = complete(client, args, stream=True)
        next(iter(stream))
        stream.close()
    complete(client, args)


@check
def embeddings_keep_their_order(client, args):
    if args.embed_model is None:
        return "the server has no encoder"
    ask = lambda texts, **more: client.embeddings.create(model=args.embed_model, input=texts, **more)
    both = ask(["a cat", "the stock market fell"])
    vectors = [entry.embedding for entry in both.data]
    assert [entry.index for entry in both.data] == [0, 1] and vectors[0] != vectors[1]
    check_same = lambda left, right: all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(left, right, strict=True))
    # The client asks for base64 where nothing is said.
    assert check_same(ask("a cat").data[0].embedding, vectors[0])
    assert check_same(ask("a cat", encoding_format="float").data[0].embedding, vectors[0])
    assert len(ask("a cat", dimensions=len(vectors[0])).data[0].embedding) == len(vectors[0])
    refused(openai.BadRequestError, lambda: ask("a cat", dimensions=len(vectors[0]) + 1), "dimensions")
    assert both.usage.prompt_tokens == both.usage.total_tokens > 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--key")
    parser.add_argument("--model", required=True)
    parser.add_argument("--chat-model", help="without it, --model")
    parser.add_argument("--embed-model")
    args = parser.parse_args()
    args.chat_model = args.chat_model or args.model
    client = openai.OpenAI(base_url=args.base_url, api_key=args.key or "none", max_retries=0, timeout=120)
    for one in CHECKS:
        name = one.__name__.replace("_", " ")
        try:
            skipped = one(client, args)
        except Exception:
            print(f"FAILED  {name}", flush=True)
            raise
        print(f"SKIPPED {name}: {skipped}" if skipped else f"ok      {name}", flush=True)
    print(f"openai {openai.__version__}: {len(CHECKS)} checks")


main()
