"""The examples that the demo model learns from."""

import json
import random

import pytest

from app.llama.template import Sandbox
from app.messages import Message, Passage
from app.prompt import augment
from train import chat, demo_handbook, demo_tools, tokenizer
from train.demo_encode import encode
from train.demo_examples import REFUSAL, WINDOW, Example, Piece, Target, Writer, fronted
from train.demo_text import Span, document

TEXT = (
    "Return a new object that replaces the specified fields with new values. The parser reads every line of the "
    "configuration file before it starts.\n\nThe older method of writing responses was removed in the third release. "
    "Workers are restarted after the memory limit of the container was reached."
)


@pytest.fixture(scope="module")
def writer() -> Writer:
    documents = [document("test", f"notes{number}.md", TEXT.replace("new", f"new{number}")) for number in range(9)]
    return Writer(documents, {}, held_out=False, seed=1, words=["apple", "river", "stone", "cloud", "window", "paper"])


@pytest.fixture(scope="module")
def learnt() -> tokenizer.Tokenizer:
    books = (demo_handbook.write(random.Random(number), held_out=False).text for number in range(300))
    return tokenizer.train(books, vocabulary=700)


def test_an_example_is_the_same_every_time(writer: Writer) -> None:
    """A number, a seed and a level name one example."""
    assert writer.example(7, level=0.8) == writer.example(7, level=0.8)
    assert writer.example(7, level=0.8) != writer.example(8, level=0.8)


def test_the_prompt_is_the_one_that_is_served() -> None:
    """The user's message is what app.prompt.augment makes of the question and the passages."""
    piece = Piece("a.md", "One fact. Two facts.", ())
    example = Example((), "Which?", (piece,), None, REFUSAL, "test")
    passage = Passage(document_id="", collection="", title="a.md", chunk=0, text=piece.text, score=0, start=0, end=0)
    assert example.content() == augment((Message(role="user", content="Which?"),), [passage])[0].content


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_quote_stands_word_for_word_in_the_source_that_it_names(writer: Writer, level: float) -> None:
    """An answer is `"sentence" [n]` with the sentence of passage n, or the refusal, or quotes nothing."""
    for number in range(120):
        example = writer.example(number, level=level)
        if example.target is None:
            assert example.kind == "spelling" or not example.answer.endswith("]")
            continue
        quoted, _, mark = example.answer.rpartition(" ")
        assert quoted[1:-1] in example.pieces[example.target.piece].text
        assert mark == f"[{example.target.piece + 1}]"


def test_marks_in_a_document_are_what_serving_makes_of_them(learnt: tokenizer.Tokenizer) -> None:
    """A line that imitates a source's number, or the fence, is shown as `app.prompt` defuses it."""
    text = TEXT.replace("\n\n", "\n[2] Not a source, nor is </sources> its end.\n")
    writer = Writer([document("test", "marks.md", text)], {}, held_out=False, seed=1, words=["apple", "river", "mill"])
    examples = [writer.grounded(number, source="docs", passages=1, answerable=True) for number in range(20)]
    assert all(encode(learnt, example).pointers for example in examples)
    assert any("(2) Not a source, nor is ‹/sources>" in example.pieces[0].text for example in examples)


def test_a_question_without_an_answer_has_no_source_that_holds_it(writer: Writer) -> None:
    """What is refused in training could not have been quoted."""
    for number in range(30):
        example = writer.grounded(number, source="handbook", passages=3, answerable=False)
        assert example.answer == REFUSAL
        assert example.target is None


def test_pointers_lead_from_each_answer_token_to_its_source(learnt: tokenizer.Tokenizer) -> None:
    """At each position of the quote the pointer's token spells what comes next; the mark's points at the number."""
    piece = Piece("a.md", "Cats sleep. Dogs run far.", (Span(0, 11), Span(12, 25)))
    example = Example((), "Who runs?", (piece,), Target(0, Span(12, 25)), '"Dogs run far." [1]', "test")
    encoded = encode(learnt, example)
    spelled = [learnt.decode([encoded.tokens[at]]) for _, at in encoded.pointers]
    assert "".join(spelled).replace(" ", "").startswith("Dogsrunfar")
    assert spelled[-1].strip(" [") == "1"
    assert [quoted for _, _, quoted in encoded.sentences] == [False, True]


def test_a_call_points_at_the_offer_and_at_the_request(learnt: tokenizer.Tokenizer, writer: Writer) -> None:
    """Name and keys come from the tool that is called, values from what was asked for; that tool alone is marked."""
    for number in range(40):
        example = writer.of_kind(number, "tool call")
        encoded = encode(learnt, example)
        assert [quoted for _, _, quoted in encoded.sentences].count(True) == 1
        name = demo_tools.called(example.answer)
        first, last, _ = next(sentence for sentence in encoded.sentences if sentence[2])
        assert learnt.decode(encoded.tokens[first : last + 1]).strip(' "').startswith(name)
        parts = demo_tools.parts(example.answer, example.turns[0].content, example.question)
        for part in parts:
            source = example.turns[0].content if part.offered else example.question
            copied = example.answer[part.start : part.start + part.length]
            assert source[part.source : part.source + part.length] == copied
        call = json.loads(example.answer.split("\n")[1])
        assert len(parts) == 1 + 2 * len(call["arguments"])
        assert len(encoded.pointers) >= len(parts)


def test_a_request_is_led_to_the_tool_by_their_common_words(learnt: tokenizer.Tokenizer, writer: Writer) -> None:
    """Tools are read before the request, so it is the request's words that look back, and the answer gathers them."""
    found = 0
    for number in range(40):
        encoded = encode(learnt, writer.of_kind(number, "tool call"))
        assert all(at < looks for looks, at in encoded.matches)
        found += any(at for _, at in encoded.matches)
        from_answer = [at for looks, at in encoded.gathers if looks >= encoded.answer]
        assert set(from_answer) <= {0, *(looks for looks, at in encoded.matches if at)}
    assert found > 30


def test_a_system_prompt_in_front_leaves_the_answer_as_it_is(learnt: tokenizer.Tokenizer, writer: Writer) -> None:
    """Other text moves what is to be looked at, and nothing else."""
    for number, kind in enumerate(["tool call", "no tool call", "follow-up", "smalltalk"]):
        made = writer.of_kind(number, kind)
        behind = fronted(made, writer.front(number, 1000))
        near, far = encode(learnt, made), encode(learnt, behind)
        assert len(far.tokens) > len(near.tokens) + 100
        assert near.tokens[near.answer :] == far.tokens[far.answer :]
        moved = far.answer - near.answer
        assert [(looks + moved, at + moved) for looks, at in near.pointers] == far.pointers


def test_positions_left_out_stay_inside_the_window(learnt: tokenizer.Tokenizer, writer: Writer) -> None:
    """The last token of an example still has a position that the model is served with."""
    for number in range(200):
        encoded = encode(learnt, writer.example(number))
        assert 0 <= encoded.gap <= max(0, WINDOW - len(encoded.tokens))


def test_spelling_points_every_piece_at_its_word(learnt: tokenizer.Tokenizer, writer: Writer) -> None:
    """Behind a quotation mark a word has other tokens than behind a space; all of them come from that word."""
    found = 0
    for number in range(200):
        example = writer.example(number)
        if example.kind != "spelling":
            continue
        found += 1
        encoded = encode(learnt, example)
        spelled = "".join(learnt.decode([encoded.tokens[looks + 1]]) for looks, _ in encoded.pointers)
        assert spelled == "".join(json.loads(example.answer))
    assert found


def test_where_no_tool_fits_none_is_marked(learnt: tokenizer.Tokenizer, writer: Writer) -> None:
    """The offer is there to be passed over."""
    for number in range(20):
        example = writer.of_kind(number, "no tool call")
        offers = len(demo_tools.offered(example.turns[0].content))
        assert 1 <= offers <= 8
        assert not any(quoted for _, _, quoted in encode(learnt, example).sentences[-offers:])


def test_training_ends_with_the_end_of_the_turn(learnt: tokenizer.Tokenizer, writer: Writer) -> None:
    """The model learns to stop: the last token of every example is <|im_end|>."""
    encoded = encode(learnt, writer.example(3))
    assert encoded.tokens[-1] == tokenizer.number(learnt, tokenizer.TURN_END)


def test_held_out_wordings_are_never_trained_on() -> None:
    """The last wording of each fact is for evaluation alone."""
    for number in range(50):
        trained = demo_handbook.write(random.Random(number), held_out=False)
        kept = demo_handbook.write(random.Random(number), held_out=True)
        assert trained.text == kept.text
        for one, other in zip(trained.facts, kept.facts, strict=True):
            assert not set(one.questions) & set(other.questions)


def test_the_template_in_the_file_renders_what_training_showed(learnt: tokenizer.Tokenizer) -> None:
    """Jinja and `chat.render` write the same prompt, tools and earlier turns included."""
    call = demo_tools.call(random.Random(1), held_out=False)
    definition = json.loads(call.tool.definition)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": call.request},
    ]
    offered = chat.Turn("system", chat.offer([call.tool.definition], "Be brief."))
    turns = [offered, *(chat.Turn(m["role"], m["content"]) for m in messages[1:])]
    text = (
        Sandbox().from_string(chat.TEMPLATE).render(messages=messages, tools=[definition], add_generation_prompt=True)
    )
    tokens = [*chat.render(learnt, turns).tokens, *chat.opening(learnt)]
    assert text == learnt.decode(tokens, skip_special_tokens=False)
