"""A chunk of source code says in which class and function it stands."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chunking import cut
from app.outline import paths
from app.outline_code import DEFINITIONS, GRAMMARS, definitions

SOURCES = {
    "python": ("class A(B):\n    async def f(self):\n        return HERE\n", "class A(B) › async def f(self)"),
    "javascript": ("class A {\n  m(x) {\n    return HERE\n  }\n}\n", "class A › m(x)"),
    "typescript": ("namespace N {\n  interface I {\n    a: HERE\n  }\n}\n", "namespace N › interface I"),
    "tsx": ("function App(): JSX.Element {\n  return <b>HERE</b>\n}\n", "function App(): JSX.Element"),
    "java": ("class A {\n  void m(int a) {\n    HERE();\n  }\n}\n", "class A › void m(int a)"),
    "go": ("func (s *S) M() error {\n  return HERE\n}\n", "func (s *S) M() error"),
    "rust": ("impl Foo for Bar {\n  fn m(&self) {\n    HERE\n  }\n}\n", "impl Foo for Bar › fn m(&self)"),
    "c": ("static int f(int a) {\n  return HERE;\n}\n", "static int f(int a)"),
    "cpp": ("namespace é {\nclass A {\n  void m() {\n    HERE;\n  }\n};\n}\n", "namespace é › class A › void m()"),
}


def test_every_language_has_an_outline():
    """Of those that are cut by their grammar."""
    assert set(SOURCES) == set(GRAMMARS) == set(DEFINITIONS)


@pytest.mark.parametrize("kind", SOURCES)
def test_the_path_names_what_a_line_is_inside_of(kind: str):
    """By the first lines of the classes and functions around it; offsets are characters, not bytes."""
    source, path = SOURCES[kind]
    assert list(paths(source, definitions(source, kind), [source.index("HERE")])) == [path]


def test_a_method_cut_in_two_says_twice_whose_it_is():
    """The second half alone would be lines of nobody."""
    body = "".join(f"        self.value_{number} = {number}\n" for number in range(12))
    chunks = cut(f"class Pump:\n    def start(self):\n{body}", kind="python", chunk_chars=128, overlap_chars=0)
    assert [chunk.heading for chunk in chunks[1:]] == ["class Pump › def start(self)"] * (len(chunks) - 1)


@given(
    source=st.text(st.sampled_from('aé😀 \n\t(){}[];:"=<>classdefimplfn'), max_size=200),
    kind=st.sampled_from(list(GRAMMARS)),
)
def test_what_is_no_program_is_outlined_as_far_as_it_goes(source: str, kind: str):
    """Spans in order, inside of the text, nested or apart."""
    spans = definitions(source, kind)
    assert all(0 <= start <= end <= len(source) for start, end in spans)
    assert all(a[0] <= b[0] and (b[0] >= a[1] or b[1] <= a[1]) for a, b in pairwise(spans))
