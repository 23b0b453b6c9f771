"""Calls and streams over real sockets: errors, deadlines, limits, ends."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace

import grpc
import pytest

from protocols.defaults import KEEPALIVE_S, MAX_FRAME_BYTES, MAX_PART_BYTES
from protocols.errors import (
    MAX_QUOTED,
    CacheFullError,
    ConfigError,
    DeadlineError,
    FrameError,
    InternalError,
    OverloadedError,
    PeerUnreachableError,
    ProtocolVersionError,
    SpanNotServedError,
)
from protocols.identity import from_seed
from protocols.ids import short_peer
from protocols.services import Method
from swarm.rpc import pool as pool_module
from swarm.rpc import status
from swarm.rpc.admission import Admission
from swarm.rpc.stream import Stream
from tests.swarm.rpc.parts import ECHO, FAIL, LARGE, REMAINING, SERVER, TALK, WAIT, error_of, running


async def test_our_errors_come_back_as_they_were_raised() -> None:
    async with running() as there:
        channel = await there.channel()
        text = await error_of(channel.unary(FAIL, b"ours"), CacheFullError)
        assert text == f"peer {short_peer(channel.peer)} says: 'no memory for 7 tokens, ünlimited memory required'"


async def test_any_other_error_tells_a_stranger_nothing_and_our_log_everything(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as there:
        text = await error_of((await there.channel()).unary(FAIL, b"theirs"), InternalError)
        assert "secret" not in text and "ValueError" not in text
        number = text.rpartition(" ")[2].rstrip("'")
        assert number in caplog.text and "a secret of the server" in caplog.text


async def test_a_long_message_is_cut_rather_than_lost() -> None:
    """gRPC drops a status whose text passes its limit for metadata, and would report something else."""
    async with running() as there:
        text = await error_of((await there.channel()).unary(FAIL, b"long"), CacheFullError)
        assert "says: 'üüü" in text and MAX_QUOTED < len(text) < MAX_QUOTED + 50


async def test_a_deadline_holds_on_both_sides() -> None:
    async with running() as there:
        channel = await there.channel()
        async with asyncio.timeout(30):  # it is given 0.2 s, and 60 s otherwise
            await error_of(channel.unary(WAIT, b"", 0.2), DeadlineError)
        assert await there.handlers.seen.get() == "wait begins"
        async with asyncio.timeout(60):
            assert isinstance(await there.handlers.seen.get(), asyncio.CancelledError)  # the server does not work on


async def test_a_deadline_is_the_sooner_of_the_callers_and_the_methods_and_travels() -> None:
    async with running() as there:
        channel = await there.channel()
        for given, expected in ((30.0, 30.0), (None, 70.0), (500.0, 70.0)):
            left_s = float(await channel.unary(REMAINING, b"", given))
            assert expected - 20.0 < left_s <= expected + 0.1


async def test_what_the_peer_does_not_offer_is_a_typed_error() -> None:
    async with running() as there:
        channel = await there.channel()
        await error_of(channel.unary(Method(name="unknown"), b""), ProtocolVersionError)
        await error_of(channel.stream(Method(name="unknown", streaming=True)), ProtocolVersionError)


async def test_messages_over_the_limit_are_refused_and_the_connection_lives() -> None:
    async with running() as there:
        channel = await there.channel()
        await error_of(channel.unary(ECHO, bytes(MAX_FRAME_BYTES + 1)), FrameError)
        await error_of(channel.unary(LARGE, str(MAX_FRAME_BYTES + 1).encode()), InternalError)
        assert len(await channel.unary(LARGE, str(MAX_FRAME_BYTES).encode())) == MAX_FRAME_BYTES
        stream = await channel.stream(TALK)
        await error_of(stream.send(bytes(MAX_FRAME_BYTES + 1)), FrameError)
        await stream.send(b"still here")
        assert await stream.receive() == b"still here"
        stream.cancel()


async def test_the_largest_frames_pass_in_parts_and_come_back_as_they_were() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        for size in (MAX_FRAME_BYTES, MAX_PART_BYTES + 1, MAX_PART_BYTES, 3):
            frame = os.urandom(size)
            await stream.send(frame)
            assert await stream.receive() == frame
        stream.cancel()


async def test_calls_beyond_the_limit_are_refused_at_once() -> None:
    async with running(admission=Admission(10, 2)) as there:
        channel = await there.channel()
        first, second = [await channel.stream(TALK) for _ in range(2)]
        async with asyncio.timeout(30):  # no place becomes free meanwhile
            await error_of(channel.stream(TALK), OverloadedError)
            await error_of(channel.unary(ECHO, b""), OverloadedError)
        await first.end()
        assert await first.receive() is None
        assert await channel.unary(ECHO, b"!")  # there is a free place again
        second.cancel()


async def test_a_stream_need_not_wait_until_it_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(call: object) -> bool:
        raise AssertionError("not asked")

    async with running(admission=Admission(10, 1)) as there:
        channel = await there.channel()
        monkeypatch.setattr(pool_module, "_is_admitted", never)
        first = await channel.stream(TALK, is_awaited=False)
        await first.send(b"hello")
        assert await first.receive() == b"hello"
        await error_of((await channel.stream(TALK, is_awaited=False)).receive(), OverloadedError)
        await first.end()
        assert await first.receive() is None


async def test_a_stream_carries_frames_both_ways_and_ends_cleanly() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        for number in range(20):
            await stream.send(b"%d" % number)
            assert await stream.receive() == b"%d" % number
        await stream.end()
        assert await stream.receive() is None
        assert await stream.receive() is None  # and stays so
        assert await there.handlers.seen.get() == "end"


async def test_frames_that_wait_are_received_in_the_order_in_which_they_were_sent() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        sent = [b"%d" % number for number in range(40)]
        for frame in sent:
            await stream.send(frame)
        await stream.end()
        async with asyncio.timeout(60):
            assert [await stream.receive() for _ in sent] == sent
            assert await stream.receive() is None


class Source(Stream):
    """A stream whose other side sends large frames for as long as they are read."""

    num_read = 0

    async def _read(self) -> bytes | None:
        self.num_read += 1
        return bytes(5 << 20)

    async def send(self, frame: bytes) -> None: ...

    async def end(self) -> None: ...

    def cancel(self) -> None:
        self._break(PeerUnreachableError("cancelled"))


async def test_a_frame_counts_as_waiting_until_the_next_one_is_asked_for() -> None:
    """Of frames of 5 MB, a stream holds two: the second passes the limit of 8. So it is while the first one is handled."""
    stream = Source(from_seed(bytes(32)).peer_id)
    for taken in range(3):
        for _ in range(10):
            await asyncio.sleep(0)
        assert stream.num_read == max(2, taken + 1), "a frame was read while two were held"
        assert await stream.receive()
    stream.cancel()


async def test_a_refusal_in_a_stream_reaches_receive_and_send() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        await stream.send(b"gap")
        assert (
            await error_of(stream.receive(), SpanNotServedError) == f"peer {short_peer(stream.peer)} says: 'we wait for step 3'"
        )
        await error_of(stream.receive(), SpanNotServedError)
        await error_of(stream.send(b"x"), SpanNotServedError)
        await stream.end()


async def test_a_caller_that_vanishes_is_no_clean_end_for_the_server() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        stream.cancel()
        async with asyncio.timeout(60):
            seen = await there.handlers.seen.get()
        assert isinstance(seen, PeerUnreachableError | asyncio.CancelledError)
        await error_of(stream.receive(), PeerUnreachableError)


async def test_a_server_that_breaks_is_noticed_in_a_moment() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        waiting = asyncio.create_task(error_of(stream.receive(), PeerUnreachableError))
        await there.server.stop()
        async with asyncio.timeout(KEEPALIVE_S):  # sooner than by a ping
            await waiting
        await error_of(stream.send(b"x"), PeerUnreachableError)


async def test_calls_on_a_connection_that_another_call_gives_up_break_and_are_not_cancelled() -> None:
    """A CancelledError out of gRPC would end their tasks, and all that waits for these."""
    async with running() as there:
        channel = await there.channel()
        stream = await channel.stream(TALK)
        waiting = [
            asyncio.ensure_future(one) for one in (channel.unary(replace(WAIT, is_idempotent=False), b"9"), stream.receive())
        ]
        await asyncio.sleep(0.05)
        await channel._drop()  # as `_redial` does
        async with asyncio.timeout(60):
            for one in waiting:
                await error_of(one, PeerUnreachableError)


async def test_receive_can_be_given_up_and_taken_up_again() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        for number in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(stream.receive(), 0.02)
            await stream.send(b"%d" % number)
            assert await stream.receive() == b"%d" % number
        stream.cancel()


async def test_a_slow_reader_stops_the_sender_instead_of_filling_memory() -> None:
    async with running() as there:
        stream = await (await there.channel()).stream(TALK)
        await stream.send(b"hold")
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 200:
                await asyncio.wait_for(stream.send(bytes(1 << 20)), 0.5)
                sent += 1
        assert 0 < sent < 60  # MB: gRPC's own windows, the queue of 4, and no more
        stream.cancel()


async def test_bytes_of_a_stranger_leave_the_server_alive(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as there:
        channel = await there.channel()
        before = len(caplog.records)
        host, _, port = there.address.partition(":")
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", os.urandom(4_096), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(1 << 16)):
            _reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(data)
            try:
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            except ConnectionError:
                pass
        assert await channel.unary(ECHO, b"!")
        assert len(caplog.records) - before <= 5  # a line each, at most


async def test_a_port_that_is_taken_is_one_line() -> None:
    async with running() as there:
        with pytest.raises(ConfigError, match=r"port is taken; choose another") as caught:
            async with running(port=int(there.address.rpartition(":")[2])):
                pass
        assert "\n" not in str(caught.value)


async def test_one_connection_serves_everybody_who_asks_for_a_peer() -> None:
    async with running() as there:
        channels = await asyncio.gather(*(there.channel() for _ in range(5)))
        assert len({id(channel) for channel in channels}) == 1
        await there.pool.forget(SERVER.peer_id)
        again = await there.channel()
        assert again is not channels[0] and await again.unary(ECHO, b"!")
        await error_of(channels[0].unary(ECHO, b""), PeerUnreachableError)


def test_a_refusal_that_grpc_lost_is_a_broken_connection_and_no_fault_of_the_peer() -> None:
    """gRPC forgets the other side's status if the call ends while a message is written; the next call hears why."""
    error = status.from_status(grpc.StatusCode.INTERNAL, status.LOST_STATUS, (), SERVER.peer_id)
    assert type(error) is PeerUnreachableError and error.try_another_peer
