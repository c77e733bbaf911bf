"""Settings: which profile a run has, where its file is found, and what a broken file says."""

import subprocess
from pathlib import Path

import pytest

import nlp_portfolio.course.settings as st


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    "An empty folder to work in, no GPU, no profile from the environment."
    for name in ("NLP_PROFILE", "NLP_PORTFOLIO_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(st, "has_gpu", lambda: False)
    monkeypatch.setattr(st, "_active", [])
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")


def write(folder: Path, text: str) -> Path:
    (folder / "settings.ini").write_text(text, encoding="utf-8")
    return folder / "settings.ini"


def test_defaults_come_with_the_package():
    cfg = st.settings("smoke")
    assert (cfg.profile, cfg.seed, cfg.bootstrap, cfg.encoder) == ("smoke", 42, 200, "minilm")


def test_repository_file_says_what_the_package_says(root):
    own, package = st._read(root / "settings.ini"), st._read(root / "nlp_portfolio/data/settings.ini")
    assert {name: dict(own[name]) for name in own} == {name: dict(package[name]) for name in package}


@pytest.mark.parametrize("profile", st.PROFILES)
def test_every_profile_of_the_package_is_complete(profile):
    cfg = st.settings(profile)
    assert min(cfg.max_train, cfg.max_test, cfg.bootstrap, cfg.batch_size) > 0


def test_profiles_grow():
    limits = [st.settings(name) for name in st.PROFILES]
    for name in ("max_train", "max_test", "bootstrap"):
        assert [getattr(cfg, name) for cfg in limits] == sorted({getattr(cfg, name) for cfg in limits})


def test_nearest_file_above_the_working_folder_overrides_single_values(tmp_path):
    write(tmp_path, "[course]\nprofile = cpu\nseed = 7\n")
    assert st.find_settings() == tmp_path.resolve() / "settings.ini"
    cfg = st.settings()
    assert (cfg.profile, cfg.seed, cfg.batch_size) == ("cpu", 7, 32)
    write(tmp_path / "deep", "[course]\nseed = 8\n[cpu]\nbatch_size = 5\n")
    assert (st.settings("cpu").seed, st.settings("cpu").batch_size) == (8, 5)


def test_settings_file_of_another_program_is_passed_over(tmp_path):
    write(tmp_path / "deep", "[DEFAULT]\nlib_name = other\n")
    ours = write(tmp_path, "[course]\nseed = 3\n")
    assert st.find_settings() == ours.resolve()


def test_no_file_above_is_none(tmp_path):
    assert st.find_settings(tmp_path) is None or not st.find_settings(tmp_path).is_relative_to(tmp_path)


@pytest.mark.parametrize(("argument", "variable", "in_file", "chosen"), [
    ("smoke", "cpu", "full", "smoke"),
    (None, "cpu", "full", "cpu"),
    (None, None, "full", "full"),
    (None, None, "auto", "cpu"),
    ("auto", "smoke", "full", "cpu"),
    (None, "", "smoke", "smoke"),
])
def test_argument_then_variable_then_file(monkeypatch, tmp_path, argument, variable, in_file, chosen):
    write(tmp_path, f"[course]\nprofile = {in_file}\n")
    if variable is not None:
        monkeypatch.setenv("NLP_PROFILE", variable)
    assert st.settings(argument).profile == chosen


def test_auto_is_full_with_a_gpu(monkeypatch):
    monkeypatch.setattr(st, "has_gpu", lambda: True)
    assert st.settings("auto").profile == "full"


@pytest.mark.parametrize("name", ["fast", "CPU", " "])
def test_unknown_profile_names_the_choices(name):
    with pytest.raises(ValueError, match="choose one of smoke, cpu, full or auto"):
        st.settings(name)


@pytest.mark.parametrize(("text", "message"), [
    ("[course]\nseed = many\n", r"seed = 'many' in \[smoke\] must be a whole number"),
    ("[course]\nbatch_size = 0\n", r"batch_size = '0' in \[smoke\] must be a whole number of at least 1"),
    ("[course]\n[smoke]\nmax_train = -5\n", r"max_train = '-5' in \[smoke\] must be"),
    ("[course]\nseed = 1\nseed = 2\n", r"settings\.ini is not a valid settings file.*Compare it with the one in the repository"),
    ("[course]\n<<<<<<< HEAD\n", r"settings\.ini is not a valid settings file"),
])
def test_broken_file_is_a_clear_error(tmp_path, text, message):
    write(tmp_path, text)
    with pytest.raises(ValueError, match=message.replace(".*", "(?s:.*)")):
        st.settings("smoke")


def test_file_that_is_not_utf8_is_a_clear_error(tmp_path):
    (tmp_path / "settings.ini").write_bytes(b"[course]\n# caf\xe9\nseed = 1\n")
    with pytest.raises(ValueError, match=r"settings\.ini is not a valid settings file"):
        st.settings("smoke")


def test_seed_may_be_zero(tmp_path):
    write(tmp_path, "[course]\nseed = 0\n")
    assert st.settings("smoke").seed == 0


def test_digits_that_int_does_not_read_are_a_clear_error(tmp_path):
    write(tmp_path, "[course]\nseed = ²\n")
    with pytest.raises(ValueError, match="seed = '²' .*must be a whole number"):
        st.settings("smoke")


def test_active_is_the_newest_choice_and_is_made_when_there_is_none():
    assert st.active().profile == "cpu"
    st.settings("smoke")
    assert st.active().profile == "smoke"


def test_home_is_the_variable_else_beside_the_file_else_here(monkeypatch, tmp_path):
    assert st.home() == Path.cwd() / "runs"
    write(tmp_path, "[course]\n")
    assert st.home() == tmp_path.resolve() / "runs"
    monkeypatch.setenv("NLP_PORTFOLIO_HOME", "~/mine")
    assert st.home() == Path.home() / "mine"


@pytest.mark.parametrize(("answer", "found"), [
    (subprocess.CompletedProcess([], 0), True),
    (subprocess.CompletedProcess([], 9), False),
    (OSError("gone"), False),
    (subprocess.TimeoutExpired("nvidia-smi", 10), False),
])
def test_gpu_is_what_nvidia_smi_says(monkeypatch, answer, found):
    def run(*_, **__):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.undo()
    monkeypatch.setattr(st.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(st.subprocess, "run", run)
    assert st.has_gpu.__wrapped__() is found


def test_device_without_torch_is_the_cpu(monkeypatch):
    monkeypatch.setattr(st.util, "find_spec", lambda _: None)
    assert st.device.__wrapped__() == "cpu"


def test_the_environment_names_the_generator_before_the_file(tmp_path, monkeypatch):
    (tmp_path / "settings.ini").write_text("[course]\nllm = instruct\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NLP_PORTFOLIO_LLM", raising=False)
    assert st.settings("smoke").llm == "instruct"
    monkeypatch.setenv("NLP_PORTFOLIO_LLM", "quote")
    assert st.settings("smoke").llm == "quote"
