"""What the doctor finds, on this machine and on machines that are ill."""

from pathlib import Path

import pytest

from kosmosg_platform.cli.doctor import Finding, examine, has_code_for, show


@pytest.mark.parametrize(
    ("built_for", "gpu", "works"),
    [
        (["sm_70", "sm_80", "sm_90"], (7, 0), True),
        (["sm_80", "sm_90", "compute_90"], (7, 0), False),  # a V100 under torch for CUDA 13
        (["sm_80", "sm_90"], (8, 6), True),  # machine code runs on later minors of its major
        (["sm_86"], (8, 0), False),
        (["sm_80", "compute_90"], (12, 0), True),  # intermediate code runs on everything later
        (["sm_90a"], (9, 0), True),
    ],
)
def test_a_torch_build_fits_a_gpu_or_not(built_for: list[str], gpu: tuple[int, int], works: bool) -> None:
    assert has_code_for(built_for, *gpu) is works


@pytest.fixture
def findings_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The findings in an empty home with the given environment."""

    def examined(**environment: str) -> list[Finding]:
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS", "TORCH_EXTENSIONS_DIR"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return examine()

    return examined


def test_this_machine_is_well(findings_of, capsys: pytest.CaptureFixture[str]) -> None:
    findings = findings_of(RAY_AUTH_MODE="disabled")
    assert [finding for finding in findings if finding.level == "bad"] == []
    assert show(findings) == 0
    page = capsys.readouterr().out
    assert "ray 2.60.0" in page
    assert "decoder toyworld and models pretrain, align, instruct are in" in page


def test_a_token_that_is_nowhere_is_told_with_the_remedy(findings_of, capsys: pytest.CaptureFixture[str]) -> None:
    findings = findings_of(RAY_AUTH_MODE="token")
    assert show(findings) == 1
    page = capsys.readouterr().out
    assert "BAD RAY_AUTH_MODE=token, but there is neither RAY_AUTH_TOKEN nor" in page
    assert "-> ray get-auth-token --generate" in page


def test_a_missing_compiler_is_a_note_not_a_failure(findings_of, tmp_path: Path) -> None:
    findings = findings_of(RAY_AUTH_MODE="disabled", PATH=str(tmp_path))
    (note,) = [finding for finding in findings if "no g++" in finding.what]
    assert note.level == "note"
    assert "engine.offload_optimizer" in note.what


def test_a_lock_that_would_hang_the_next_build_is_found(findings_of, tmp_path: Path) -> None:
    lock = tmp_path / ".cache" / "torch_extensions" / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    (note,) = [finding for finding in findings_of(RAY_AUTH_MODE="disabled") if "build lock" in finding.what]
    assert str(lock) in note.remedy
