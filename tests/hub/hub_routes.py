"""What a local Hub answers, route by route, with the statuses, headers and messages of the Hub."""

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote

from .hub_state import (
    File,
    HubError,
    Repository,
    User,
    card_errors,
    check_name,
    entry_of,
    metadata_of,
)

if TYPE_CHECKING:
    from .local_hub import Handler, LocalHub

Answer = tuple[int, dict[str, str], Any]
REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"
REV = r"(?P<rev>[^/]+)"
ROUTES = []


def route(method: str, pattern: str):
    def register(function):
        ROUTES.append((method, re.compile(pattern + r"\Z"), function))
        return function

    return register


def answer(hub: "LocalHub", handler: "Handler", user: User | None, path: str, query: dict[str, str]) -> Answer:
    """Finds the route of a request and what it answers."""
    method = "GET" if handler.command == "HEAD" else handler.command
    for known, pattern, function in ROUTES:
        found = pattern.match(path)
        if known == method and found:
            if (handler.server_name == "storage") != path.startswith("/objects/"):
                break
            return function(
                hub, handler, user, query, **{key: unquote(value or "") for key, value in found.groupdict().items()}
            )
    raise HubError(404, f"{method} {path} is not served here")


def user_of(hub: "LocalHub", header: str | None) -> User | None:
    if header is None:
        return None
    user = hub.users.get(header.removeprefix("Bearer "))
    if user is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    return user


def find(hub: "LocalHub", user: User | None, repo: str, write: bool = False) -> Repository:
    """A repository that somebody may read, or write; private ones do not exist for others."""
    repository = hub.repositories.get(repo)
    namespace = repo.split("/")[0]
    hidden = repository is not None and repository.private
    if repository is None or (hidden and (user is None or namespace not in (user.name, *user.organizations))):
        if user is None:  # the Hub does not tell strangers what exists
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")
    if write and user is None:
        raise HubError(401, "Invalid username or password.")
    if write and not user.may_write(namespace):
        raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
    return repository


# --- users, repositories


@route("GET", "/api/whoami-v2")
def whoami(hub, handler, user, query):
    if user is None:
        raise HubError(401, "Invalid username or password.")
    organizations = [{"type": "org", "name": name, "roleInOrg": "write"} for name in user.organizations]
    role = "write" if user.writes else "read"
    token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": role}}
    return (
        200,
        {},
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "orgs": organizations,
            "auth": token,
        },
    )


@route("POST", "/api/repos/create")
def create(hub, handler, user, query):
    if user is None:
        raise HubError(401, "Invalid username or password.")
    wanted = handler.json()
    if wanted.get("type", "model") != "model":
        raise HubError(400, f"This Hub holds models only, no {wanted['type']}")
    namespace, name = wanted.get("organization") or user.name, wanted["name"]
    check_name(name, hub.refused)
    if not user.may_write(namespace):
        raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
    repo = f"{namespace}/{name}"
    if repo in hub.repositories:
        raise HubError(409, "You already created this model repo", url=f"{hub.url}/{repo}")
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    hub.repositories[repo] = Repository(repo, user.name, private)
    return 200, {}, {"url": f"{hub.url}/{repo}", "name": repo, "id": repo}


@route("DELETE", "/api/repos/delete")
def delete(hub, handler, user, query):
    wanted = handler.json()
    repo = f"{wanted.get('organization') or (user.name if user else '')}/{wanted['name']}"
    hub.deleted.append(find(hub, user, repo, write=True))
    del hub.repositories[repo]
    return 200, {}, {}


@route("POST", "/api/validate-yaml")
def validate_yaml(hub, handler, user, query):
    content = handler.json().get("content", "")
    errors = [{"message": message} for message in card_errors(content)]
    if errors:
        raise HubError(400, "Invalid metadata in README.md", errors=errors, warnings=[])
    empty = [] if metadata_of(content) else [{"message": "empty or missing yaml metadata in repo card"}]
    return 200, {}, {"errors": [], "warnings": empty}


# --- reading; routes that end in more than the repository's name come first


@route("GET", f"/api/models/{REPO}/revision/{REV}")
def revision(hub, handler, user, query, repo, rev):
    return 200, {}, find(hub, user, repo).info(rev)


@route("GET", f"/api/models/{REPO}/tree/{REV}(?:/(?P<folder>.+))?")
def tree(hub, handler, user, query, repo, rev, folder):
    recursive = query.get("recursive", "").lower() in ("true", "1")
    return 200, {}, find(hub, user, repo).tree(rev, folder, recursive)


@route("POST", f"/api/models/{REPO}/paths-info/{REV}")
def paths_info(hub, handler, user, query, repo, rev):
    files = find(hub, user, repo).commit(rev).files
    text = handler.body.decode()
    wanted = handler.json()["paths"] if text.startswith("{") else parse_qs(text).get("paths", [])
    return 200, {}, [entry_of(path, files[path]) for path in wanted if path in files]


@route("GET", f"/api/models/{REPO}/refs")
def refs(hub, handler, user, query, repo):
    branches = find(hub, user, repo).branches
    described = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches.items()]
    return 200, {}, {"branches": described, "converts": [], "tags": [], "pullRequests": []}


@route("GET", f"/api/models/{REPO}/commits/{REV}")
def commits(hub, handler, user, query, repo, rev):
    told = [
        {
            "id": made.oid,
            "title": made.message,
            "message": made.description,
            "authors": [{"user": made.author}],
            "date": "2026-01-01T00:00:00.000Z",
        }
        for made in find(hub, user, repo).history(rev)
    ]
    return 200, {}, told


@route("GET", f"/api/models/{REPO}/auth-check(?P<write>/write)?")
def auth_check(hub, handler, user, query, repo, write):
    find(hub, user, repo, write=bool(write))
    return 200, {}, {}


@route("GET", f"/api/models/{REPO}")
def info(hub, handler, user, query, repo):
    return 200, {}, find(hub, user, repo).info()


def located(hub: "LocalHub", user: User | None, repo: str, rev: str, path: str) -> tuple[File, str, dict[str, str]]:
    """A file, the commit that it is of, and the headers that tell of both."""
    made = find(hub, user, repo).commit(rev)
    if path not in made.files:
        raise HubError(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": made.oid})
    file = made.files[path]
    return file, made.oid, {"X-Repo-Commit": made.oid, "ETag": f'"{file.blob}"'}


@route("GET", f"/{REPO}/resolve/{REV}/(?P<path>.+)")
def resolve(hub, handler, user, query, repo, rev, path):
    file, oid, headers = located(hub, user, repo, rev, path)
    linked = {"X-Linked-Size": str(len(file.data)), "X-Linked-ETag": f'"{file.oid}"'}
    if file.large:
        place = f"{hub.storage}/objects/{file.sha256}?signed=1"
        return 302, headers | linked | {"Location": place}, b""
    place = f"/api/resolve-cache/models/{repo}/{oid}/{quote(path)}"
    return 307, headers | linked | {"Location": place}, b""


@route("GET", f"/api/resolve-cache/models/{REPO}/{REV}/(?P<path>.+)")
def resolve_cache(hub, handler, user, query, repo, rev, path):
    file, _, headers = located(hub, user, repo, rev, path)
    return ranged(handler, file.data, headers)


@route("GET", "/objects/(?P<oid>[0-9a-f]{64})")
def get(hub, handler, user, query, oid):
    if oid not in hub.objects:
        raise HubError(404, "NoSuchKey")
    return ranged(handler, hub.objects[oid], {"ETag": f'"{oid}"'})


def ranged(handler: "Handler", data: bytes, headers: dict[str, str]) -> Answer:
    """A file, or the part of it that was asked for."""
    headers = headers | {"Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    if not wanted:
        return 200, headers, data
    first = int(wanted[1])
    last = min(int(wanted[2]) if wanted[2] else len(data) - 1, len(data) - 1)
    if first > last:
        raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{len(data)}"})
    return 206, headers | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}, data[first : last + 1]
