"""What a run that is asked for over HTTP is to do."""

from pathlib import Path

import pytest
import yaml

from app.dialects.training import StartRequest
from app.errors import InvalidRequest, Misconfigured
from app.settings import LLMSettings
from deployments import ordering
from deployments.ordering import parameters_for


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The params.yaml that is read."""
    monkeypatch.setattr(ordering, "params_file", lambda: tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


def test_a_model_is_taught_by_the_template_that_serves_it(told: Path, tmp_path: Path):
    """Where params.yaml says nothing of it."""
    told.write_text(yaml.safe_dump({"tune": {"base": "demo"}, "publish": {"model": "m"}}))
    made = parameters_for("m", LLMSettings(name="m", chat_template="mistral_inst"), tmp_path)
    assert made["tune"] == {"base": "demo", "chat_template": "mistral_inst"}
    assert parameters_for("m", LLMSettings(name="m"), tmp_path)["tune"] == {"base": "demo"}


def test_two_templates_for_one_model_are_refused(told: Path, tmp_path: Path):
    """It would be asked otherwise than it was taught."""
    told.write_text(yaml.safe_dump({"tune": {"chat_template": "auto"}, "publish": {"model": "m"}}))
    with pytest.raises(Misconfigured, match=r"is auto in params\.yaml, and the model is served by mistral_inst"):
        parameters_for("m", LLMSettings(name="m", chat_template="mistral_inst"), tmp_path)


@pytest.mark.parametrize("style", ["auto", "mistral_inst"])
def test_what_params_say_of_one_model_does_not_bind_another(style: str, told: Path, tmp_path: Path):
    """Whose base is not that of params.yaml, either."""
    told.write_text(yaml.safe_dump({"tune": {"chat_template": "mistral_inst"}, "publish": {"model": "a"}}))
    served = LLMSettings(name="b", chat_template=style)
    assert parameters_for("b", served, tmp_path)["tune"] == {"base": "demo", "chat_template": style}


@pytest.mark.parametrize(("wanted", "served"), [("auto", "mistral_inst"), ("mistral_inst", None)])
def test_a_request_for_another_template_is_refused(wanted: str, served: str | None):
    """With both; the one that serves may be named."""
    parameters = {"tune": {} if served is None else {"chat_template": served}}
    with pytest.raises(InvalidRequest, match=f"is '{wanted}', and the model is served by '{served or 'auto'}'"):
        StartRequest(parameters={"tune": {"chat_template": wanted}}).order("default", parameters)
    told = StartRequest(parameters={"tune": {"chat_template": served or "auto"}}).order("default", parameters)
    assert told.parameters["tune"]["chat_template"] == (served or "auto")
