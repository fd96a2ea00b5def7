"""`status` over real parts: from figures to lines, and what each part that is away makes of it."""

from tests.process.place import Place


def test_sound(place: Place) -> None:
    place.enqueue()
    place.enqueue("sensitive")
    d = place.say("status", exit_code=1)
    print(d.stdout, d.stderr)
    with place.worker():
        import time

        time.sleep(2)
        s = place.sql("select id from generation_sessions order by created_at desc limit 1")[0]["id"]
        d = place.say("sessions", "trace", str(s))
        print(d.stdout, d.stderr)
        print(place.say("sessions", "trace", str(s), "-o", "json").stdout)
        print(place.say("sessions", "trace", str(s), "--follow").stdout)
        d = place.say("status", exit_code=1)
        print(d.stdout)
        assert 0
