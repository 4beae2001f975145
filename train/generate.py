"""Stage `generate`: distil answers from a teacher, a model behind any OpenAI- or Anthropic-compatible URL.

    MINDFU_TEACHER_KEY=… python -m train.generate --input data=prompts/ --set url=https://host/v1 --set model=large

Of each line the messages up to its last question are asked; what the teacher says is learnt. Answers that are cut
short, or that do not satisfy the schemas (of tools, of `json_schema`), are asked for again. What the teacher said is
kept at once in <home>/datasets/teachers, by what it was asked: a run that was killed, or stopped by its budget, never
pays twice.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from pydantic import Field, SecretStr

from app.errors import InvalidRequest, NothingToLearn
from app.messages import Message, Strict
from app.settings import Secrets
from train import lines, stages
from train.domain import Domain
from train.lines import Line
from train.quality import Quality, fault
from train.stages import Outcome, Stage, Work
from train.teacher import Answer, Dialect, Teacher

CHARS_A_TOKEN = 2.0  # to reserve for a prompt before the teacher has counted it: more than most texts need


class Generate(Strict):
    """The parameters of the stage `generate`."""

    url: str = Field(min_length=1)  # up to /v1
    model: str = Field(min_length=1)
    dialect: Dialect = "openai"
    system: str | None = None  # in front of prompts without a system prompt, and learnt with them
    temperature: float = Field(0.7, ge=0, le=2)
    max_tokens: int = Field(1024, ge=1)  # of an answer
    json_schema: Domain | None = None  # answers must be JSON that satisfies it: train/domain.py
    samples: int = Field(1, ge=1)  # answers to each prompt
    tries: int = Field(3, ge=1)  # for each answer, until it satisfies
    budget_tokens: int = Field(1_000_000, ge=1)  # prompts and answers together; no request is sent that may exceed it
    concurrency: int = Field(4, ge=1)
    timeout_s: float = Field(120.0, gt=0)


def check(inputs: Mapping[str, Path], parameters: Generate) -> None:
    """Raises where there is nothing to ask."""
    if not parameters.url.startswith(("http://", "https://")):
        raise InvalidRequest(f"'{parameters.url}' is no http:// or https:// address.", "generate.url")
    if not any(True for folder in inputs.values() for _ in lines.texts(_data(folder))):
        raise NothingToLearn("prompts", 0, 1, "Give lines with a question each, as train.convert makes them.")


def make(work: Work[Generate]) -> Outcome:
    """Ask everything that was not asked before, and write what satisfies."""
    return asyncio.run(_make(work))


async def _make(work: Work[Generate]) -> Outcome:
    parameters = work.parameters
    prompts = [prompt for folder in work.all("data") for line in lines.read(_data(folder)) if (prompt := asked(line))]
    key: SecretStr | None = Secrets.from_env().teacher_key
    teacher = Teacher(
        parameters.url,
        parameters.dialect,
        parameters.model,
        key=key.get_secret_value() if key else None,
        timeout_s=parameters.timeout_s,
    )
    lesson = Lesson(parameters, teacher, Kept(work.home, parameters))
    told: dict[int, str] = {}
    try:
        async for place, line in lesson.answers([(p, n) for p in prompts for n in range(parameters.samples)]):
            told[place] = lines.dump(line)
            work.progress(len(told), len(prompts) * parameters.samples)
    finally:
        await teacher.close()
    if not told:
        reason = lesson.dropped.most_common(1)[0][0] if lesson.dropped else "no prompt ends with a question"
        raise NothingToLearn("answers that satisfy", 0, 1, f"The most frequent reason: {reason}.")
    counts = {"lines": lines.save(work.folder / "data.jsonl", (told[place] for place in sorted(told)))}
    counts |= {"tokens": lesson.spent, "requests": lesson.requests}
    return Outcome(counts, lesson.dropped)


def asked(line: Line) -> Line | None:
    """A line up to its last question, without weights; None: nobody asks in it."""
    last = max((place for place, message in enumerate(line.messages) if message.role == "user"), default=None)
    if last is None:
        return None
    return line._replace(messages=line.messages[: last + 1], weights=(0,) * (last + 1))


class Kept:
    """What one teacher said before, by what it was asked. A line is written when an answer is there."""

    def __init__(self, home: Path, parameters: Generate) -> None:
        names = {"url", "model", "dialect", "system", "temperature", "max_tokens"}
        teacher = json.dumps(parameters.model_dump(mode="json", include=names), sort_keys=True)
        folder = home / "datasets" / "teachers"
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{hashlib.sha256(teacher.encode()).hexdigest()[: stages.KEY_CHARS]}.jsonl"
        self._answers: dict[str, Answer] = {}
        for text in lines.texts(self._path) if self._path.exists() else ():
            told = json.loads(text)
            message, *rest = told["answer"]
            self._answers[told["asked"]] = Answer(Message.model_validate(message), *rest)

    def get(self, question: str) -> Answer | None:
        return self._answers.get(question)

    def add(self, question: str, answer: Answer) -> None:
        self._answers[question] = answer
        told = {"asked": question, "answer": [answer.message.model_dump(exclude_defaults=True), *answer[1:]]}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told, ensure_ascii=False) + "\n")


class Lesson:
    """Asks many prompts at once, within a budget. spent: tokens of all answers used, those kept before included."""

    def __init__(self, parameters: Generate, teacher: Teacher, kept: Kept) -> None:
        self._parameters, self._teacher, self._kept = parameters, teacher, kept
        self._slots = asyncio.Semaphore(parameters.concurrency)
        self._quality = Quality(json_schema=parameters.json_schema, refusals=False)
        self.spent, self.requests, self._reserved = 0, 0, 0
        self.dropped: Counter[str] = Counter()

    async def answers(self, wanted: list[tuple[Line, int]]) -> AsyncIterator[tuple[int, Line]]:
        """Lines with their answers, as they come, each with its place among those wanted.

        Raises InvalidRequest and Unavailable of the teacher; what is under way then is cancelled.
        """
        tasks = [asyncio.create_task(self._one(place, *one)) for place, one in enumerate(wanted)]
        try:
            for task in asyncio.as_completed(tasks):
                place, line = await task
                if line is not None:
                    yield place, line
        finally:
            for unfinished in tasks:
                unfinished.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, place: int, prompt: Line, sample: int) -> tuple[int, Line | None]:
        async with self._slots:
            messages = prompt.messages
            if self._parameters.system and messages[0].role != "system":
                messages = (Message(role="system", content=self._parameters.system), *messages)
            wrong = ""
            for attempt in range(self._parameters.tries):
                answer = await self._ask(prompt._replace(messages=messages), sample * 1000 + attempt)
                if answer is None:
                    self.dropped["the budget is spent"] += 1
                    return place, None
                wrong = fault(answer.message, prompt.tools, self._quality) or ("" if answer.whole else "cut short")
                if not wrong:
                    learnt = (*(0 for _ in messages), 1)
                    metadata = {**prompt.metadata, "id": prompt.id, "teacher": self._parameters.model}
                    return place, Line((*messages, answer.message), learnt, prompt.tools, metadata)
            self.dropped[wrong] += 1
            return place, None

    async def _ask(self, prompt: Line, number: int) -> Answer | None:
        """The number-th answer to a prompt. None: it might exceed the budget."""
        said = [prompt.messages, prompt.tools]
        chars = sum(len(one.model_dump_json()) for some in said for one in some)
        question = f"{lines.fingerprint(prompt.messages)} {_hash(prompt)} {number}"
        if (known := self._kept.get(question)) is not None:
            self.spent += known.prompt_tokens + known.answer_tokens
            return known
        reserved = int(chars / CHARS_A_TOKEN) + self._parameters.max_tokens
        if self.spent + self._reserved + reserved > self._parameters.budget_tokens:
            return None
        self._reserved += reserved
        try:
            self.requests += 1
            sampling = {"max_tokens": self._parameters.max_tokens, "temperature": self._parameters.temperature}
            answer = await self._teacher.ask(prompt.messages, prompt.tools, **sampling)
        finally:
            self._reserved -= reserved
        self.spent += answer.prompt_tokens + answer.answer_tokens
        self._kept.add(question, answer)
        return answer


def _hash(prompt: Line) -> str:
    offered = json.dumps([tool.model_dump(mode="json") for tool in prompt.tools], sort_keys=True)
    return hashlib.sha256(offered.encode()).hexdigest()[:16]


def _data(folder: Path) -> Path:
    path = folder if folder.is_file() else folder / "data.jsonl"
    if not path.exists():
        raise InvalidRequest(f"{folder} has no data.jsonl: it is no data set.", "data")
    return path


STAGE = Stage(
    name="generate",
    does="Distil answers from a teacher.",
    place="datasets",
    inputs=("data+",),
    parameters=Generate,
    make=make,
    check=check,
)

if __name__ == "__main__":
    stages.main(STAGE)
