"""Evaluations on disk as they are made, so that a profile that was stopped goes on where it was.

One file a measurement, `<key>.jsonl`, append-only: a line {"job": ..., "result": ...} for each evaluation, in any
order. A line goes out in one write to a file opened for appending, so processes may share it; a line that a crash
cut short is ignored. The key is a digest of code, weights, calibration inputs and objective: whatever changes a result.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from stic.runtime.errors import InputError


class EvaluationLog:
    """Results by job name; kept in memory only if there is no folder."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self.results: dict[str, Any] = {}
        self.path = None if folder is None else folder / f"{key}.jsonl"
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            if text and not text.endswith("\n"):  # a line cut short must not swallow the next one
                self._append("\n")
        except OSError as error:
            raise InputError(f"cannot keep evaluations in {folder}: {error.strerror}; name another folder") from error
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self.results[entry["job"]] = entry["result"]
            except (ValueError, KeyError, TypeError):
                continue

    def add(self, job: str, result: Any) -> None:
        """Keep a result, on disk before it is in memory."""
        self._append(json.dumps({"job": job, "result": result}) + "\n")
        self.results[job] = result

    def _append(self, text: str) -> None:
        if self.path is None:
            return
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, text.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror}; free some space and go on") from error
