"""Ray's own failures at the start, each answered before Ray itself is asked: one sentence with the way out."""

import contextlib
import http.server
import logging
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from ribray.cluster import local, session
from ribray.cluster.session import address_of, require_reachable
from ribray.config import ClusterConfig
from ribray.errors import UsageError

SECONDS = 20.0


@contextlib.contextmanager
def refused(*parts: str):
    """Expect a sentence that has these parts, in time."""
    began = time.monotonic()
    with pytest.raises(UsageError) as raised:
        yield
    assert time.monotonic() - began < SECONDS
    for part in parts:
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)


# --- a cluster elsewhere -----------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> int:
    """A port that takes connections, on which nobody ever says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.fixture
def web() -> int:
    """A port on which a web server answers, as a dashboard does."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.RequestHandlerClass.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_address_is_that_of_the_configuration_then_that_of_the_environment(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "there:1")
    assert address_of(ClusterConfig(address="here:1")) == ("here:1", "cluster.address=here:1")
    assert address_of(ClusterConfig()) == ("there:1", "RAY_ADDRESS=there:1")
    for none in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", none)
        assert address_of(ClusterConfig())[0] is None


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_named(scheme):
    address = f"{scheme}127.0.0.1:1"
    with refused(f"RAY_ADDRESS={address}: no Ray cluster answers at ", "nothing listens there", "leave it out"):
        require_reachable(address, f"RAY_ADDRESS={address}")


def test_a_silent_port_is_not_waited_for(silent, monkeypatch):
    monkeypatch.setattr(session, "ANSWER_SECONDS", 1.0)
    with refused(f"no Ray cluster answers at 127.0.0.1:{silent}", "does not answer within 1 s"):
        require_reachable(f"ray://127.0.0.1:{silent}", "RAY_ADDRESS=…")


@pytest.mark.parametrize("path", ["", "/namespace"])
def test_a_web_server_is_no_cluster(web, path):
    with refused("what answers there is not Ray"):
        require_reachable(f"ray://127.0.0.1:{web}{path}", "RAY_ADDRESS=…")


def test_a_port_of_ray_that_is_not_the_heads_is_told_from_it():
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    try:
        with refused("is not the head of a Ray cluster", "ray://"):
            require_reachable(f"127.0.0.1:{port}", "RAY_ADDRESS=…")
    finally:
        server.stop(None)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://head", "head", "head:", "localhost:0x7", ":"])
def test_what_is_no_address_is_told_what_one_looks_like(address):
    with refused(f"RAY_ADDRESS={address} is no address of a Ray cluster", "HOST:PORT"):
        require_reachable(address, f"RAY_ADDRESS={address}")


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "no-such-host.invalid:6379"])
def test_an_address_that_cannot_be_is_named(address):
    with refused("no Ray cluster answers at"):
        require_reachable(address, "RAY_ADDRESS=…")


# --- a cluster of this machine -----------------------------------------------------------------------------------


@pytest.fixture
def surroundings(monkeypatch, tmp_path):
    """An environment in which Ray finds a home and a temporary folder, as in most."""
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set in its place is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return monkeypatch


def test_what_ray_finds_by_itself_is_left_to_it(surroundings, tmp_path):
    (tmp_path / "t").mkdir()
    surroundings.setenv("RAY_TMPDIR", "/tmp")
    local.options(cpus=1)
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize("kind", ["long", "file", "missing", "empty", "relative"])
def test_a_temporary_folder_that_will_not_do_is_replaced_by_a_short_one(name, kind, surroundings, tmp_path, caplog):
    (tmp_path / "file").touch()
    long = tmp_path / ("x" * 100)
    folders = {"long": long, "file": tmp_path / "file", "missing": "/proc/nothing", "empty": "", "relative": "tmp"}
    surroundings.setenv(name, str(folders[kind]))
    with caplog.at_level(logging.WARNING):
        local.options(cpus=1)
    assert os.environ["RAY_TMPDIR"] == "/tmp"
    assert f"{name}={folders[kind]}: Ray cannot keep its files there" in caplog.text
    assert "they are in /tmp/ray" in caplog.text


def test_a_temporary_folder_without_room_is_refused_where_there_is_no_other(surroundings, tmp_path):
    surroundings.setenv("RAY_TMPDIR", "/tmp")
    surroundings.setattr(local, "FREE_BYTES", 2**60)
    with refused("RAY_TMPDIR=/tmp: Ray cannot keep its files in /tmp/ray (only", "MiB are free", "set RAY_TMPDIR"):
        local.options(cpus=1)


@pytest.mark.parametrize("kind", ["missing", "file", "folder in place of the token", "none"])
def test_without_a_home_to_write_to_the_token_is_one_for_now(kind, surroundings, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / ".ray" / "auth_token").mkdir(parents=True)
    homes = {"missing": "/proc/nothing", "file": str(tmp_path / "file"), "folder in place of the token": str(tmp_path)}
    if kind == "none":

        def no_home() -> None:
            raise RuntimeError("Could not determine home directory.")

        surroundings.setattr(local.Path, "home", no_home)
    else:
        surroundings.setenv("HOME", homes[kind])
    local.options(cpus=1)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_the_token_in_the_home_folder_is_for_its_owner_alone_and_lasts(surroundings, tmp_path):
    local.options(cpus=1)
    file = tmp_path / ".ray" / "auth_token"
    token = file.read_text()
    assert len(token) == 64
    assert file.stat().st_mode & 0o777 == 0o600
    local.options(cpus=1)
    assert file.read_text() == token
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_settings_of_another_cluster_do_not_reach_one_of_this_machine(surroundings):
    for name in local.OF_OTHER_CLUSTERS:
        surroundings.setenv(name, "127.0.0.1:1")
    local.options(cpus=1)
    assert not any(name in os.environ for name in local.OF_OTHER_CLUSTERS)
