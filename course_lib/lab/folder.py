"""Where the chapters are, where a learner works on them, and settings that keep Jupyter inside that folder."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from course_lib.files import write_atomically

PAGE_CONFIG = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}
SETTINGS = {
    # Over subshells a slider touched before a busy cell would redraw during it, and one touched after would wait.
    "@jupyterlab/apputils-extension:kernels-settings": {"commsOverSubshells": "disabled"},
    "@jupyterlab/docmanager-extension:plugin": {
        "defaultViewers": {"markdown": "Markdown Preview"}
    },  # pages, not source
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
SERVER_CONFIG = {
    "ServerApp": {"ip": "127.0.0.1", "allow_root": True, "allow_remote_access": False},  # root: containers
    "KernelSpecManager": {"allowed_kernelspecs": ["python3"]},
}
LAB_CONFIG = {
    "LabApp": {
        "news_url": None,
        "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        "extension_manager": "readonly",  # the other one lists packages from the internet
    }
}
KERNEL = {
    "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"],
    "display_name": "Python 3",
    "language": "python",
    "metadata": {"debugger": True},
}


@dataclass(frozen=True)
class CourseFolder:
    """Where the chapters are, and where a learner works on them."""

    root: Path

    @classmethod
    def here(cls) -> "CourseFolder":
        """The folder that this library runs from.

        Raises FileNotFoundError if there are no chapters beside it, as after an install outside the repository.
        """
        folder = cls(Path(__file__).resolve().parents[2])
        if not folder.notebooks.is_dir():
            raise FileNotFoundError(
                f"no chapters in {folder.notebooks}: they are in the course's repository, not in the package. "
                "Clone the repository and type `make lab` there, or `pip install --editable .` and `course lab`"
            )
        return folder

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def state(self) -> Path:
        return self.work / ".jupyter"

    def chapters(self, wanted: Sequence[str] = ()) -> list[Path]:
        """The chapter notebooks in order; all of them, or those whose number or name is `wanted`.

        Raises ValueError for a chapter that is not there.
        """
        every = sorted(self.notebooks.glob("*.ipynb"))
        if not every:
            raise FileNotFoundError(f"no chapters in {self.notebooks}: `make notebooks` builds them from notebooks/src")
        chosen = [path for path in every for name in wanted if _is_named(path, name)]
        for name in wanted:
            if not any(_is_named(path, name) for path in every):
                raise ValueError(f"there is no chapter {name}: choose from {', '.join(path.stem for path in every)}")
        return list(dict.fromkeys(chosen)) if wanted else every


def _is_named(path: Path, name: str) -> bool:
    number = path.stem.split("_")[0]
    return name in (path.stem, path.name) or (name.isdigit() and number.isdigit() and int(name) == int(number))


def private_environment(folder: CourseFolder) -> dict[str, str]:
    """Environment variables that keep Jupyter, IPython and matplotlib in the course's folder, and make this very
    interpreter the kernel `python3`. Writes the settings that they point to."""
    state = folder.state
    written = {
        "config/labconfig/page_config.json": PAGE_CONFIG,
        "config/labconfig/default_setting_overrides.json": SETTINGS,
        "config/jupyter_server_config.json": SERVER_CONFIG,
        "config/jupyter_lab_config.json": LAB_CONFIG,
        "share/kernels/python3/kernel.json": KERNEL,
    }
    for name, content in written.items():
        write_atomically(state / name, json.dumps(content, indent=1))
    folders = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_PATH": "share",
        "IPYTHONDIR": "ipython",
        "MPLCONFIGDIR": "matplotlib",
    }
    for name in folders.values():
        (state / name).mkdir(parents=True, exist_ok=True)
    return {variable: str(state / name) for variable, name in folders.items()}
