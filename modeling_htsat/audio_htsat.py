"""Any audio in (file, URL, bytes, array, tensor, data set row), mono float32 at the rate of the model out, in blocks.

`load_audio` gives the whole sound, `stream_audio` gives it block by block in bounded memory; both walk the same path:

    open_audio  ->  chunks (frames, channels)  ->  mono  ->  resampled  ->  blocks (samples,)

libsndfile reads the files (WAV, FLAC, OGG, Opus, MP3, AIFF and their relatives), so ffmpeg is not needed. Whatever goes
wrong with a source is an `AudioError` whose one sentence says what came, what is needed and what to do.
"""

import contextlib
import http.client
import io
import ipaddress
import math
import numbers
import os
import re
import socket
import stat
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import soundfile
import soxr
import torch

MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 384_000
MAX_CHANNELS = 64
MAX_SAMPLE = 1e12  # 240 dB beyond full scale; from about 1e17 on, powers overflow float32 and scores are NaN
AUDIO_SUFFIXES = (".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav", ".wave")

# Decoding goes in chunks of one fixed size, so that the size of the blocks asked for cannot change a single sample.
_CHUNK_FRAMES = 65_536
_SPOOL_BYTES = 64 * 2**20  # downloads and file objects stay in memory up to here, then move to a temporary file
_COPY_BYTES = 2**20
# IPv6 addresses whose last 32 bits are an IPv4 address: of NAT64, mapped, and compatible ones.
_WRAPPING_NETWORKS = [ipaddress.IPv6Network(network) for network in ("64:ff9b::/96", "::ffff:0:0/96", "::/96")]
_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's count for a FLAC stream whose header leaves the length open
_UNKNOWN_BYTES = 0x7FFF_0000  # from here up, a WAV written to a pipe says "until the end" (ffmpeg, sox, arecord)
_MP3_SLACK_FRAMES = 2 * 1152  # encoders disagree by up to two MPEG frames on padding; that is no truncation
_PCM = {"int8": (0, 2**7), "uint8": (2**7, 2**7), "int16": (0, 2**15), "int32": (0, 2**31)}  # (silence, full scale)

# libsndfile shortens the length of a cut file without an error; only its log remembers what the header had promised.
_LOGGED_SIZES = re.compile(r"^ *(?:data|SSND|BODY|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_LOGGED_ENDS = re.compile(r"lacks an end-of-stream bit|Seems to be a truncated file")


class AudioError(ValueError):
    """A sound cannot be had from this source; the message says why and what to do."""


# ── One sound ────────────────────────────────────────────────────────────────────────────────────────────────────────


class AudioSource:
    """One opened sound: its name, its own rate, channels and length, and its blocks. Use it in a `with` statement.

    `duration_seconds` comes from the source's own rate and length, and is None where only the end will tell (a FLAC
    stream without a length, an MP3 without a length tag).
    """

    def __init__(self, name: str, sampling_rate: int, num_channels: int, num_frames: int | None) -> None:
        if num_frames == 0:
            raise AudioError(f"{name} holds no samples: give a sound of at least one sample.")
        if not 1 <= num_channels <= MAX_CHANNELS:
            raise AudioError(f"{name} has {num_channels} channels: give audio with 1 to {MAX_CHANNELS} channels.")
        self.name = name
        self.sampling_rate = _checked_rate(sampling_rate, name)
        self.num_channels = num_channels
        self.duration_seconds = None if num_frames is None else num_frames / self.sampling_rate

    def blocks(self, sampling_rate: int, block_seconds: float = 30.0) -> Iterator[np.ndarray]:
        """Mono float32 blocks at `sampling_rate`, all of `block_seconds` but the last. One walk at a time."""
        sampling_rate = _checked_rate(sampling_rate, "the wanted audio")
        if not (math.isfinite(block_seconds) and block_seconds > 0):
            raise AudioError(f"block_seconds is {block_seconds}: give a length above 0 seconds, for example 30.0.")
        samples = self._mono_chunks()
        if sampling_rate != self.sampling_rate:
            samples = _resampled(samples, self.sampling_rate, sampling_rate)
        is_empty = True
        for block in _regrouped(samples, max(1, round(block_seconds * sampling_rate))):
            is_empty = False
            yield block
        if is_empty:
            raise AudioError(
                f"{self.name} is too short for a single sample at {sampling_rate} Hz: give a longer sound."
            )

    def close(self) -> None:
        """Let go of the file behind the sound, if there is one."""

    def __enter__(self) -> "AudioSource":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _chunks(self) -> Iterator[np.ndarray]:
        """Float32 chunks (frames, channels) at the source's own rate."""
        raise NotImplementedError

    def _mono_chunks(self) -> Iterator[np.ndarray]:
        num_before = 0
        for chunk in self._chunks():
            mono = self._to_mono(chunk)
            self._refuse_what_is_no_sound(mono, num_before)
            num_before += len(mono)
            yield mono

    def _to_mono(self, chunk: np.ndarray) -> np.ndarray:
        # Channel by channel: numpy's mean may sum in another order for another number of frames.
        with np.errstate(over="ignore", invalid="ignore"):
            mono = chunk[:, 0].copy()
            for channel in range(1, self.num_channels):
                mono += chunk[:, channel]
            mono /= self.num_channels
        return mono

    def _refuse_what_is_no_sound(self, mono: np.ndarray, num_before: int) -> None:
        is_sound = np.abs(mono) <= MAX_SAMPLE  # False for NaN
        if not is_sound.all():
            seconds = (num_before + int(is_sound.argmin())) / self.sampling_rate
            raise AudioError(
                f"{self.name} holds samples that are NaN or infinite, or beyond {MAX_SAMPLE:.0e} where full scale is "
                f"1, the first at {seconds:.3f} s: repair it, or write it anew."
            )


def _checked_rate(sampling_rate: Any, name: str) -> int:
    is_whole = isinstance(sampling_rate, numbers.Real) and float(sampling_rate).is_integer()
    if not is_whole or not MIN_SAMPLING_RATE <= float(sampling_rate) <= MAX_SAMPLING_RATE:
        needed = f"a whole number of Hz between {MIN_SAMPLING_RATE} and {MAX_SAMPLING_RATE}"
        raise AudioError(f"The sampling rate of {name} is {sampling_rate!r}: it must be {needed}.")
    return int(sampling_rate)


def _resampled(samples: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    resampler = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32", quality="HQ")
    for chunk in samples:
        yield resampler.resample_chunk(chunk)
    yield resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)


def _regrouped(pieces: Iterable[np.ndarray], block_samples: int) -> Iterator[np.ndarray]:
    """Pieces of any length become blocks of one length; the rest comes last."""
    held: list[np.ndarray] = []
    num_held = 0
    for piece in pieces:
        held.append(piece)
        num_held += len(piece)
        if num_held >= block_samples:
            joined = np.concatenate(held)
            num_held = len(joined) % block_samples
            whole = len(joined) - num_held
            yield from (joined[start : start + block_samples] for start in range(0, whole, block_samples))
            held = [joined[whole:]]
    if num_held:
        yield np.concatenate(held)


# ── Arrays ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class _ArraySource(AudioSource):
    """Samples that are already in memory."""

    def __init__(self, samples: Any, sampling_rate: int | None, name: str) -> None:
        if sampling_rate is None:
            raise AudioError(f"{name} came without its sampling rate: say it with source_sampling_rate=.")
        self._frames = _with_channels_last(_as_numpy(samples, name), name)
        super().__init__(name, sampling_rate, self._frames.shape[1], len(self._frames))

    def _chunks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._frames), _CHUNK_FRAMES):
            yield _as_float32(self._frames[start : start + _CHUNK_FRAMES])


def _as_numpy(samples: Any, name: str) -> np.ndarray:
    try:
        if isinstance(samples, torch.Tensor):
            samples = samples.detach().cpu()
            samples = (samples.float() if samples.is_floating_point() else samples).numpy()
        array = np.asarray(samples)
    except (TypeError, ValueError, RuntimeError) as error:
        raise AudioError(f"{name} is no regular array in memory: give numbers of one dtype.") from error
    if isinstance(samples, (list, tuple)) and array.dtype.kind in "iu" and array.size:
        if np.abs(array).max() > 1:
            raise AudioError(f"{name} lists whole numbers beyond 1: if they are PCM, give np.int16 or np.int32 arrays.")
        array = array.astype(np.float32)
    if array.dtype.kind != "f" and array.dtype.name not in _PCM:
        raise AudioError(f"{name} has dtype {array.dtype}: give floats, or PCM as int8, uint8, int16 or int32.")
    return array


def _with_channels_last(array: np.ndarray, name: str) -> np.ndarray:
    """(samples,), (channels, samples) or (samples, channels) to (samples, channels); the fewer are the channels."""
    if array.size == 0:
        raise AudioError(f"{name} holds no samples: give a sound of at least one sample.")
    if array.ndim == 1:
        return array[:, None]
    if array.ndim != 2 or min(array.shape) > MAX_CHANNELS:
        raise AudioError(
            f"{name} has shape {array.shape}: give (samples,), (channels, samples) or (samples, channels) "
            f"with at most {MAX_CHANNELS} channels."
        )
    if array.shape[0] == array.shape[1] > 1:
        raise AudioError(f"{name} has shape {array.shape}, which leaves open what the channels are: mix it to mono.")
    return array if array.shape[1] <= array.shape[0] else array.T


def _as_float32(chunk: np.ndarray) -> np.ndarray:
    if chunk.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused as such
            return chunk.astype(np.float32, copy=False)
    silence, full_scale = _PCM[chunk.dtype.name]
    return ((chunk.astype(np.float64) - silence) / full_scale).astype(np.float32)


# ── Encoded files ────────────────────────────────────────────────────────────────────────────────────────────────────


class _FileSource(AudioSource):
    """An encoded file, read by libsndfile through a Python file object that stands at the file's first byte."""

    def __init__(self, name: str, file: BinaryIO, allow_truncated: bool) -> None:
        self.name, self._file, self._allow_truncated = name, file, allow_truncated
        _refuse_empty(file, name)
        self._is_mp3, has_length_tag = _mp3_facts(file)
        with self._opened() as sound:
            self._is_mp3 = sound.format == "MP3"  # other formats may start with an ID3 tag too
            is_length_open = sound.frames == _UNKNOWN_FRAMES or (self._is_mp3 and not has_length_tag)
            self._num_frames = None if is_length_open else sound.frames
            if _is_cut(sound.extra_info):
                self._refuse_unless_allowed("is truncated: its header promises more than the file holds")
            super().__init__(name, sound.samplerate, sound.channels, self._num_frames)

    def close(self) -> None:
        self._file.close()

    def _opened(self) -> soundfile.SoundFile:
        # Opened anew for every walk: after seek(0), the first MP3 samples differ from those of a fresh start.
        try:
            self._file.seek(0)
            with _muted_stderr(self._is_mp3):
                return soundfile.SoundFile(self._handle())
        except (soundfile.SoundFileError, TypeError, ValueError) as error:
            reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
            raise AudioError(
                f"{self.name} is not audio that libsndfile can read ({reason}): "
                "give a WAV, FLAC, OGG, Opus, MP3 or AIFF file (raw samples without a header as an array)."
            ) from error

    def _handle(self) -> BinaryIO | int:
        """What libsndfile reads through: a descriptor where there is one.

        Of a Python file object it calls the methods, and a Ctrl-C that comes inside such a call is lost. MP3 needs the
        object all the same, whose position tells where the decoder stopped.
        """
        if self._is_mp3 or not isinstance(self._file, io.BufferedReader):
            return self._file
        descriptor = os.dup(self._file.fileno())
        os.lseek(descriptor, 0, os.SEEK_SET)  # the reader's buffer has moved it on
        return descriptor

    def _chunks(self) -> Iterator[np.ndarray]:
        num_read = 0
        with self._opened() as sound:
            buffer = np.empty((_CHUNK_FRAMES, sound.channels), dtype=np.float32)
            while True:
                chunk, is_broken = self._read_into(buffer, sound)
                num_read += len(chunk)
                yield chunk
                if is_broken or not len(chunk):
                    break
        self._check_end(num_read)

    def _read_into(self, buffer: np.ndarray, sound: soundfile.SoundFile) -> tuple[np.ndarray, bool]:
        """What could be read, and whether reading broke off."""
        buffer.fill(np.nan)
        try:
            with _muted_stderr(self._is_mp3):
                return sound.read(out=buffer), False
        except soundfile.SoundFileError:
            # The count of the frames decoded before the break is lost, they are not: they stand where NaN stood.
            return buffer[: np.isfinite(buffer[:, 0]).sum()], True

    def _check_end(self, num_read: int) -> None:
        slack = _MP3_SLACK_FRAMES if self._is_mp3 else 0
        if self._num_frames is not None and num_read < self._num_frames - slack:
            self._refuse_unless_allowed(f"is truncated or damaged: {num_read} of {self._num_frames} frames can be read")
        if self._is_mp3 and _is_mpeg_sync(self._file.read(2)):
            # Without a length tag libsndfile guesses from the first bit rate, and stops at its guess.
            self._refuse_unless_allowed(f"goes on after the {num_read} frames that libsndfile counts in this MP3")

    def _refuse_unless_allowed(self, finding: str) -> None:
        if not self._allow_truncated:
            raise AudioError(f"{self.name} {finding}; write it anew, or take what there is with allow_truncated=True.")


def _refuse_empty(file: BinaryIO, name: str) -> None:
    try:
        is_empty = not file.read(1)
    except OSError as error:  # what can be opened can still fail to be read
        raise AudioError(f"{name} cannot be read ({error.strerror}): give a file that you may read.") from error
    if is_empty:
        raise AudioError(f"{name} is empty (0 bytes): give a file that holds audio.")


def _is_cut(libsndfile_log: str) -> bool:
    sizes = ((int(promised), int(present)) for promised, present in _LOGGED_SIZES.findall(libsndfile_log))
    return bool(_LOGGED_ENDS.search(libsndfile_log)) or any(here < said < _UNKNOWN_BYTES for said, here in sizes)


def _is_mpeg_sync(first_bytes: bytes) -> bool:
    return len(first_bytes) >= 2 and first_bytes[0] == 0xFF and first_bytes[1] & 0xE0 == 0xE0


def _mp3_facts(file: BinaryIO) -> tuple[bool, bool]:
    """Whether the file looks like an MP3, and whether its first frame is a tag that says how long it is."""
    file.seek(0)
    head = file.read(10)
    if head[:3] == b"ID3" and len(head) == 10:
        tag_bytes = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
        file.seek(10 + tag_bytes)
    elif _is_mpeg_sync(head):
        file.seek(0)
    else:
        return False, False
    first_frame = file.read(256)
    return True, any(tag in first_frame for tag in (b"Xing", b"Info", b"VBRI"))


_stderr_lock = threading.Lock()


@contextlib.contextmanager
def _muted_stderr(is_wanted: bool) -> Iterator[None]:
    """Keep mpg123, inside libsndfile, from writing remarks on odd MP3s to file descriptor 2, where no setting stops it.

    A thread that finds another one muting goes on without waiting: a lock copied by a fork would never open again.
    """
    if not is_wanted or not _stderr_lock.acquire(blocking=False):
        yield
        return
    with contextlib.ExitStack() as undo:
        undo.callback(_stderr_lock.release)
        with contextlib.suppress(OSError):  # no stderr, nothing to mute
            saved = os.dup(2)
            undo.callback(os.close, saved)
            null = os.open(os.devnull, os.O_WRONLY)
            undo.callback(os.close, null)
            os.dup2(null, 2)
            undo.callback(os.dup2, saved, 2)
        yield


# ── Where bytes come from ────────────────────────────────────────────────────────────────────────────────────────────


def _open_path(path: Path) -> BinaryIO:
    try:
        if stat.S_ISREG(path.stat().st_mode):
            file = path.open("rb")
            file.raw.name = None  # type: ignore[attr-defined]  # soundfile would believe the suffix `.raw`
            return file
    except FileNotFoundError as error:
        raise AudioError(f"{path} does not exist: check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path} cannot be opened ({reason}): give the path of a file that you may read.") from error
    raise AudioError(f"{path} is a folder or no regular file: give a file (list_audio_files finds those of a folder).")


def _open_file_object(file: Any, name: str) -> BinaryIO:
    try:
        return _spooled(file.read, name)
    except Exception as error:  # what a caller's object may raise is anybody's guess
        raise AudioError(f"{name} could not be read ({error}): give bytes, or a file opened in binary mode.") from error


def _spooled(read: Callable[[int], bytes], name: str, max_bytes: float = math.inf) -> BinaryIO:
    """Copy what `read` gives into a temporary file: seekable, from its first byte, and gone when closed."""
    spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115
    try:
        num_bytes = 0
        while chunk := read(_COPY_BYTES):
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise AudioError(f"{name} is larger than max_url_bytes={max_bytes}: fetch it yourself, or raise that.")
            spool.write(chunk)
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return cast(BinaryIO, spool)


def _download(url: str, max_bytes: int, silent_seconds: float, max_seconds: float, allow_private: bool) -> BinaryIO:
    opener = urllib.request.OpenerDirector()  # not build_opener, whose openers follow a redirect to ftp:// too
    usual = [urllib.request.ProxyHandler, urllib.request.HTTPRedirectHandler, urllib.request.HTTPErrorProcessor]
    with _Deadline(max_seconds) as deadline:
        opener.add_handler(_WebHandler(deadline, allow_private))
        for handler in [*usual, urllib.request.HTTPDefaultErrorHandler, urllib.request.UnknownHandler]:
            opener.add_handler(handler())
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "modeling_htsat"})
            with opener.open(request, timeout=silent_seconds) as response:
                return _read_response(response, url, max_bytes, deadline)
        except AudioError:
            raise
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            deadline.refuse_if_over(url)
            raise AudioError(
                f"{url} could not be downloaded ({error}): check the address, or fetch it yourself."
            ) from error


def _read_response(response: Any, url: str, max_bytes: int, deadline: "_Deadline") -> BinaryIO:
    if (response.length or 0) > max_bytes:
        raise AudioError(f"{url} has {response.length} bytes, above max_url_bytes={max_bytes}: raise that.")
    spool = _spooled(response.read, url, max_bytes)
    try:
        deadline.refuse_if_over(url)  # a connection that was cut ends like one that is done
        if response.length:
            raise AudioError(f"{url} broke off {response.length} bytes before its end: try again.")
    except AudioError:
        spool.close()
        raise
    return spool


class _Deadline:
    """Cuts the connections of a download when its time is up: a server that sends a byte now and then is never silent.

    Use it in a `with` statement.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._is_over = seconds, False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._cut)
        self._timer.daemon = True

    def watch(self, connected: socket.socket) -> None:
        self._sockets.append(connected.dup())  # TLS takes the socket itself away
        if self._is_over:
            self._cut()

    def _cut(self) -> None:
        self._is_over = True
        for connected in self._sockets:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)

    def refuse_if_over(self, url: str) -> None:
        if self._is_over:
            raise AudioError(f"{url} takes longer than max_url_seconds={self._seconds:g}: raise that.")

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._timer.cancel()
        for connected in self._sockets:
            connected.close()


def _refuse_private(host: str, addresses: Iterable[str]) -> None:
    for address in addresses:
        if not _is_public(address):
            raise PermissionError(f"{host} is at the private address {address}, allow_private_urls=True permits it")


def _refuse_private_by_name(url: str) -> None:
    """What a URL itself says, however it spells an address: a proxy that it goes through sees the inside too."""
    host = (urllib.parse.urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        _refuse_private(host, ["127.0.0.1", "::1"])
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):  # a name, which is asked for where one connects to it
        return
    _refuse_private(host, (str(address[4][0]) for address in found))


def _is_public(address: str) -> bool:
    """Whether an address is one of the internet, and so is the IPv4 address that gateways and tunnels find in it."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv4Address):
        return parsed.is_global
    is_wrapped = any(parsed in network for network in _WRAPPING_NETWORKS)
    inside = ipaddress.IPv4Address(int(parsed) & 0xFFFF_FFFF) if is_wrapped else parsed.sixtofour
    return parsed.is_global and not parsed.is_site_local and (inside is None or inside.is_global)


class _Connection(http.client.HTTPConnection):
    """Checked where it leads to, unless that does not matter; every redirect connects anew, so each is checked."""

    deadline: _Deadline
    allow_private: bool

    def connect(self) -> None:
        if not self.allow_private:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
            _refuse_private(self.host, (str(address[4][0]) for address in found))
        super().connect()
        self.deadline.watch(self.sock)
        if not self.allow_private:  # the name may have been given another address in between
            _refuse_private(self.host, [self.sock.getpeername()[0]])


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """The check stands between the connection and the TLS handshake: HTTPSConnection.connect calls the one above."""


class _WebHandler(urllib.request.AbstractHTTPHandler):
    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, deadline: _Deadline, allow_private: bool) -> None:
        super().__init__()
        self._deadline, self._allow_private = deadline, allow_private

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._open(_Connection, req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self._open(_SecureConnection, req)

    def _open(self, kind: type[_Connection], req: urllib.request.Request) -> http.client.HTTPResponse:
        if not self._allow_private:
            _refuse_private_by_name(req.full_url)
        return self.do_open(self._connections(kind), req)

    def _connections(self, kind: type[_Connection]) -> Any:
        return type(kind.__name__, (kind,), {"deadline": self._deadline, "allow_private": self._allow_private})


# ── What one calls ───────────────────────────────────────────────────────────────────────────────────────────────────


def open_audio(
    source: Any,
    *,
    source_sampling_rate: int | None = None,
    allow_truncated: bool = False,
    allow_private_urls: bool = False,
    max_url_bytes: int = 2**30,
    timeout_seconds: float = 30.0,
    max_url_seconds: float = 900.0,
) -> AudioSource:
    """Open any audio: a path, an http(s) URL, encoded bytes, a binary file object, samples, or a data set row.

    Args:
        source: Samples are a numpy array, a torch tensor or a list; integers are PCM, floats are kept as they are. Of
            two dimensions the smaller one (at most 64) is the channels. Rows are `{"array" | "raw", "sampling_rate"}`
            or `{"bytes", "path"}`, also under `{"audio": ...}`. A file object is read from where it stands.
        source_sampling_rate: The rate of bare samples in Hz; files and rows say their own.
        allow_truncated: Take what there is of a cut or damaged file, instead of refusing it.
        allow_private_urls: Also download from private, loopback and link-local addresses. Of names that
            a proxy is asked for, only the proxy's own address is known, and counts.
        max_url_bytes: The largest download.
        timeout_seconds: How long a server may stay silent.
        max_url_seconds: The longest download, from the first connection on.
    """
    source, sampling_rate, name = _unwrapped(source, source_sampling_rate)
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        return _ArraySource(source, sampling_rate, name or f"the given {type(source).__name__}")
    if isinstance(source, str) and re.match("https?://", source, re.IGNORECASE):
        name, file = source, _download(source, max_url_bytes, timeout_seconds, max_url_seconds, allow_private_urls)
    elif isinstance(source, (str, os.PathLike)):
        name, file = str(source), _open_path(Path(source))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, file = name or f"the given {type(source).__name__}", io.BytesIO(bytes(source))
    elif hasattr(source, "read"):
        name = str(getattr(source, "name", None) or f"the given {type(source).__name__}")
        file = _open_file_object(source, name)
    else:
        raise AudioError(
            f"{name or 'the source'} is of type {type(source).__name__}: give a path, URL, bytes or array."
        )
    try:
        return _FileSource(name, file, allow_truncated)
    except AudioError:
        file.close()
        raise


def _unwrapped(source: Any, sampling_rate: int | None) -> tuple[Any, int | None, str]:
    """The sound inside a data set row, its sampling rate where the row has samples, and its name where it has one."""
    while isinstance(source, Mapping) and "audio" in source:
        source = source["audio"]
    if not isinstance(source, Mapping):
        return source, sampling_rate, ""
    name = str(source.get("path") or "the given row")
    samples = source["array"] if source.get("array") is not None else source.get("raw")
    if samples is not None:
        if source.get("sampling_rate") is None:
            raise AudioError(f"{name} has samples but no sampling_rate: give both.")
        return samples, source["sampling_rate"], name
    content = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if content is None:
        raise AudioError(
            f"{name} has the keys {sorted(map(str, source))}: fill array and sampling_rate, or bytes, or path."
        )
    return content, sampling_rate, name


def stream_audio(source: Any, sampling_rate: int, block_seconds: float = 30.0, **options: Any) -> Iterator[np.ndarray]:
    """The sound as mono float32 blocks (samples,) at `sampling_rate`; joined they equal `load_audio` bit for bit.

    The options are those of `open_audio`. Bare samples are taken to be at `sampling_rate` already, unless
    `source_sampling_rate` says otherwise. Memory stays bounded by one block, however long the sound.
    """
    options = {"source_sampling_rate": sampling_rate, **options}
    with open_audio(source, **options) as audio:
        yield from audio.blocks(sampling_rate, block_seconds)


def load_audio(source: Any, sampling_rate: int, **options: Any) -> np.ndarray:
    """The whole sound as mono float32 (samples,) at `sampling_rate`; arguments as in `stream_audio`."""
    return np.concatenate(list(stream_audio(source, sampling_rate, **options)))


def list_audio_files(paths: str | os.PathLike | Iterable[str | os.PathLike]) -> list[Path]:
    """Files as they are given; of folders, all files inside with a known suffix, sorted, hidden ones left out."""
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[Path] = []
    for path in map(Path, given):
        if not os.path.exists(path):
            raise AudioError(f"{path} does not exist: check the path.")
        inside = _audio_files_inside(path) if path.is_dir() else [path]
        if not inside:
            raise AudioError(
                f"{path} is a folder without audio: give one with {', '.join(sorted(AUDIO_SUFFIXES))} files."
            )
        files += inside
    if not files:
        raise AudioError("No path was given: give at least one sound file or folder.")
    return files


def _audio_files_inside(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


__all__ = [
    "AUDIO_SUFFIXES",
    "AudioError",
    "AudioSource",
    "list_audio_files",
    "load_audio",
    "open_audio",
    "stream_audio",
]
