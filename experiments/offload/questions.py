#!/usr/bin/env python3
"""Makes validation files for `cutlayer offload fit` out of the shared data: questions.py DATA OUT

stories.jsonl: the first 40 to 90 words of a story, and its next word. One question for each of the last 600 whole stories of the file.
cloze.jsonl: the same beginnings, and which of four runs of three words comes next; the other three stand in other stories.
One file for each set of commonsense questions: the question, its options as texts, and the right one. The sets say "answer2"; here the
option's own words stand there, because small models were never taught what such a name means.
"""
import json, random, re, sys
from pathlib import Path

STORIES = 600
QUESTIONS = 500
SETS = ["ARC-Easy", "boolq", "openbookqa", "piqa", "winogrande"]


def stories(data, cloze):
    text = (data / "tinystories/tinystories_train_head_2MiB.txt").read_text()
    whole = text.split("<|endoftext|>")[1:-1]
    draw = random.Random(5)
    told = [words for story in whole[-STORIES:] if len(words := story.split()) >= 100]
    for words in told:
        cut = draw.randint(40, 90)
        prompt = " ".join(words[:cut])
        if not cloze:
            yield {"prompt": prompt, "completion": " " + words[cut]}
            continue
        right = " " + " ".join(words[cut : cut + 3])
        options = {right}
        while len(options) < 4:
            other = draw.choice(told)
            place = draw.randint(40, 90)
            options.add(" " + " ".join(other[place : place + 3]))
        yield {"prompt": prompt, "completion": right, "options": sorted(options)}


def question(name, row):
    text, right = row["instruction"], row["answer"]
    if name == "boolq":
        asked = re.search(r"question: (.*?)\n", text, re.S).group(1)
        return {"prompt": f"Question: {asked} Answer:", "options": [" true", " false"], "right": right}
    body = text.split(": ", 1)[1].rsplit("Answer format:", 1)[0]
    parts = re.split(r"\s*\b((?:Answer|Option|Solution)\d):\s*", body)
    asked, names, options = parts[0].strip(), [n.lower() for n in parts[1::2]], [o.strip() for o in parts[2::2]]
    place = names.index(right)
    if name == "winogrande":
        # What stands in the gap is told apart by what comes after it, which is the same: so the whole rest is the option.
        before, after = asked.split("_", 1)
        return {"prompt": before.strip(), "options": [f" {o}{after}" for o in options], "right": place}
    form = f"{asked}" if name == "piqa" else f"Question: {asked} Answer:"
    return {"prompt": form, "options": [f" {o}" for o in options], "right": place}


def main():
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    for name, cloze in [("stories", False), ("cloze", True)]:
        with open(out / f"{name}.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in stories(data, cloze))
    everything = []
    for name in SETS:
        rows = json.loads((data / f"commonsense/{name}-test.json").read_text())
        random.Random(5).shuffle(rows)
        kept = []
        for row in rows:
            made = question(name, row)
            right = made.pop("right")
            options = made["options"]
            made["completion"] = f" {right}" if name == "boolq" else options[right]
            # Two equal options are no choice; what no model here has positions for is no question.
            if len(set(options)) == len(options) and all(option.strip() for option in options):
                if len(made["prompt"]) + max(map(len, options)) < 500:
                    kept.append(made)
            if len(kept) == QUESTIONS:
                break
        everything.extend(kept)
        with open(out / f"{name}.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in kept)
        print(name, len(kept))
    random.Random(6).shuffle(everything)
    with open(out / "commonsense.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in everything)


main()
