"""A filter of Prefect's server is asked to its end, whatever its page holds."""

from __future__ import annotations

from flows.server_api import PAGE, Server


def test_all_that_a_filter_finds_is_asked_for_page_by_page(prefect_server: str) -> None:
    server = Server(prefect_server)
    names = [f"paged-{number:03d}" for number in range(PAGE + 1)]
    for name in names:
        server.ask("flows/", {"name": name})
    wanted = {"flows": {"name": {"like_": "paged-"}}, "sort": "NAME_ASC"}
    assert len(server.ask("flows/filter", wanted)) == PAGE
    assert [flow["name"] for flow in server.ask_all("flows/filter", wanted)] == names
    assert [flow["name"] for flow in server.ask_all("flows/filter", wanted, most=3)] == names[:3]
    assert len(server.ask_all("flows/filter", wanted, most=PAGE)) == PAGE
