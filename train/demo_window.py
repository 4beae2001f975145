"""How far the demo model's window reaches: its quotes behind a long system prompt, with and without RoPE scaling.

    python -m train.demo_window --out .mindfu/demo [--behind 0 200 1000 3000 7000] [--count 20]

Held-out questions over four passages, as in `train.demo_evaluate`, behind held-out system prompts of so
many tokens. "linear", where that is longer than what training saw, divides positions by how much longer (RoPE position
interpolation, arXiv:2306.15595). Greedy, through llama.cpp.
"""

import argparse
from pathlib import Path

import llama_cpp

from train import gguf_export
from train.demo_evaluate import LETTERS, SEED, Served
from train.demo_export import SHIPPED
from train.demo_train import writers

TRAINED = 4096  # positions that training saw
ROOM = 1800  # for the question, its passages and the answer


def load(path: Path, window: int, factor: float) -> Served:
    """The model with a window of so many tokens, and positions divided by the factor."""
    engine = llama_cpp.Llama(
        str(path), n_ctx=window, n_threads=1, n_threads_batch=1, rope_freq_scale=1 / factor, verbose=False
    )
    return Served(engine, gguf_export.read(path).tokenizer)


def main(out: Path, path: Path, behind: list[int], count: int) -> None:
    """Ask, and print the share of right answers by distance and scaling."""
    _, held_out = writers(out, seed=SEED)
    print("| tokens in front | scaling | asked | exact | stopped |\n|---|---|---|---|---|")
    for front in behind:
        window = front + ROOM
        for name, factor in (("none", 1.0), ("linear", window / TRAINED))[: 2 if window > TRAINED else 1]:
            served = load(path, window, factor)
            exact = stopped = 0
            for number in range(count):
                example = held_out.grounded(number, source="handbook", passages=4, answerable=True)
                if front:
                    example = served.behind(example, held_out.front(number, LETTERS * front), front)
                said = served.answer(served.prompt(example.chat()[:-1]))
                exact += said.stopped and said.text == example.answer
                stopped += said.stopped
            print(f"| {front} | {name} | {count} | {exact / count:.2f} | {stopped / count:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".mindfu/demo"))
    parser.add_argument("--gguf", type=Path, default=SHIPPED)
    parser.add_argument("--behind", type=int, nargs="+", default=[0, 200, 1000, 3000, 7000])
    parser.add_argument("--count", type=int, default=20, help="questions at each distance")
    options = parser.parse_args()
    main(options.out, options.gguf, options.behind, options.count)
