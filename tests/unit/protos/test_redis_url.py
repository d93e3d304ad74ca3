from __future__ import annotations

import pytest
from octavo.redis_client import connect
from octavo.redis_url import RedisPlace, Tls, parse_redis_url, shown_redis_url


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("redis://localhost", RedisPlace(hosts=(("localhost", 6379),))),
        ("redis://10.0.0.1:7000/3", RedisPlace(hosts=(("10.0.0.1", 7000),), database=3)),
        ("redis://[::1]:7000/", RedisPlace(hosts=(("::1", 7000),))),
        ("redis://:pa%3Ass%40@h", RedisPlace(hosts=(("h", 6379),), password="pa:ss@")),
        ("redis://me:p%2Fw@h:1", RedisPlace(hosts=(("h", 1),), username="me", password="p/w")),
        ("rediss://h", RedisPlace(hosts=(("h", 6379),), tls=Tls())),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_certfile=c.pem&ssl_keyfile=k.pem&ssl_check_hostname=false",
            RedisPlace(
                hosts=(("h", 6379),),
                tls=Tls(ca_file="/ca.pem", certificate_file="c.pem", key_file="k.pem", checks_hostname=False),
            ),
        ),
        (
            "rediss://h?ssl_cert_reqs=none",
            RedisPlace(hosts=(("h", 6379),), tls=Tls(verifies=False, checks_hostname=False)),
        ),
        ("unix:///run/a%20b.sock?db=2", RedisPlace(socket_path="/run/a b.sock", database=2)),
        ("unix://u:p@/run/s", RedisPlace(socket_path="/run/s", username="u", password="p")),
        (
            "sentinel://u:p@s1,s2:1234,[::1]:5/main/4?sentinel_username=su&sentinel_password=sp",
            RedisPlace(
                hosts=(("s1", 26379), ("s2", 1234), ("::1", 5)),
                service="main",
                database=4,
                username="u",
                password="p",
                sentinel_username="su",
                sentinel_password="sp",
            ),
        ),
        ("sentinels://s/main", RedisPlace(hosts=(("s", 26379),), service="main", tls=Tls())),
    ],
)
async def test_url_says_where_and_how(url, place):
    assert parse_redis_url(url) == place
    client = connect(url)
    client.connection_pool.make_connection()  # redis-py takes every option
    await client.aclose()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost:6379"),
        ("rediss://me:hunter2@h:1/3?ssl_keyfile=k.pem", "rediss://h:1/3"),
        ("unix://u:hunter2@/run/s?db=2", "unix:///run/s?db=2"),
        ("sentinel://u:hunter2@s1,[::1]:5/main/4?sentinel_password=hunter3", "sentinel://s1:26379,[::1]:5/main/4"),
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url: str, shown: str) -> None:
    assert shown_redis_url(url) == shown


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "must start with redis://, rediss://"),
        ("http://hunter2", "must start with"),
        ("redis://", "host or port"),
        ("redis://h:hunter2", "host or port"),
        ("redis://h:0", "host or port"),
        ("redis://h/hunter2", "number of a database"),
        ("redis://h/1/2", "number of a database"),
        ("redis://h/0?protocol=3", "option that its scheme does not know; known: none"),
        ("redis://h?ssl_ca_certs=/ca.pem", "does not know"),
        ("rediss://h?ssl_cert_req=none", "does not know; known: ssl_ca_certs"),
        ("rediss://h?ssl_cert_reqs=hunter2", "ssl_cert_reqs must be required or none"),
        ("redis://u:hunter2#x@h", "write special characters of a password as %XX"),
        ("redis://u:hunter2/@h", "write special characters|host or port"),
        ("redis://u:[hunter2@h", "is not a URL|host or port"),
        ("rediss://h?hunter2", "is not a URL"),
        ("unix://", "unix:///path"),
        ("unix://h/path", "unix:///path"),
        ("sentinel://s1,s2", "must name the service"),
        ("sentinel://s1,,s2/main", "host or port"),
        ("sentinel://s1/main/0/x", "must name the service"),
    ],
)
def test_malformed_url_is_refused_without_showing_it(url, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        parse_redis_url(url)
    assert "hunter2" not in str(refused.value)


def test_passwords_are_not_shown():
    place = parse_redis_url("sentinel://me:hunter2@h/s?sentinel_password=hunter3")
    assert "hunter" not in repr(place)
