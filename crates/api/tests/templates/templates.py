"""Writes expected.json: what Jinja itself, set up as `transformers` sets it up, makes of the templates beside this file.

Needs jinja2. Where transformers renders is `transformers.utils.chat_template_utils`; this repeats its environment.
"""

import datetime
import json
import pathlib

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent
NOW = 1_753_000_000


class Generation(Extension):
    """`{% generation %}`: prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    now = datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)
    env.globals["strftime_now"] = now.strftime
    return env


def message(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "single": [message("user", "  Hi there, <b>you</b> & \"me\"!\n")],
    "system": [message("system", "Be brief.\n"), message("user", "Où est Zoë? 日本"), message("assistant", " Here. "), message("user", "So?")],
    "thought": [message("user", "1+1?"), message("assistant", "<think>\nadd\n</think>\n\n2"), message("user", "ok", name="ann")],
    "twice": [message("user", "a"), message("user", "b")],
    "answered": [message("user", "a"), message("assistant", "banana")],
    "late system": [message("user", "a"), message("assistant", "b"), message("system", "c"), message("user", "d")],
}


def main():
    cases = []
    for path in sorted(HERE.glob("*.jinja")):
        template = environment().from_string(path.read_text())
        for name, messages in CONVERSATIONS.items():
            for ask in (True, False):
                case = {"template": path.name, "conversation": name, "messages": messages, "add_generation_prompt": ask}
                try:
                    case["prompt"] = template.render(
                        messages=messages, add_generation_prompt=ask, bos_token="<s>", eos_token="</s>", tools=None, documents=None
                    )
                except jinja2.exceptions.TemplateError as error:
                    case["refused"] = str(error)
                cases.append(case)
    (HERE / "expected.json").write_text(json.dumps({"now_unix_s": NOW, "cases": cases}, ensure_ascii=False, indent=1) + "\n")
    print(len(cases), "cases,", sum("refused" in case for case in cases), "refused")


main()
