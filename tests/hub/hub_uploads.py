"""What a local Hub answers to those who upload: where files are to go, large files, commits and branches."""

import base64
import hashlib

from .hub_routes import REPO, REV, find, route
from .hub_state import File, HubError, card_errors, is_large


@route("POST", f"/api/models/{REPO}/preupload/{REV}")
def preupload(hub, handler, user, query, repo, rev):
    commit = find(hub, user, repo, write=True).commit(rev)
    files = []
    for wanted in handler.json()["files"]:
        path, size = wanted["path"], wanted["size"]
        large = is_large(path, size, base64.b64decode(wanted["sample"]))
        now = commit.files.get(path)
        mode = "lfs" if large else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": now.oid if now else None})
    return 200, {}, {"files": files, "commitOid": commit.oid}


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def batch(hub, handler, user, query, repo):
    find(hub, user, repo, write=True)
    objects = []
    for wanted in handler.json()["objects"]:
        described = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if wanted["oid"] not in hub.objects:
            upload = {"href": f"{hub.storage}/objects/{wanted['oid']}?size={wanted['size']}&signed=1"}
            verify = {"href": f"{hub.url}/{repo}.git/info/lfs/objects/verify", "header": {}}
            described["actions"] = {"upload": upload, "verify": verify}
        objects.append(described)
    return 200, {"Content-Type": "application/vnd.git-lfs+json"}, {"transfer": "basic", "objects": objects}


@route("PUT", "/objects/(?P<oid>[0-9a-f]{64})")
def put(hub, handler, user, query, oid):
    if hashlib.sha256(handler.body).hexdigest() != oid or len(handler.body) != int(query["size"]):
        raise HubError(400, "BadDigest: the checksum or the size is not that of the content")
    hub.objects[oid] = handler.body
    return 200, {"ETag": f'"{oid}"'}, b""


@route("POST", rf"/{REPO}\.git/info/lfs/objects/verify")
def verify(hub, handler, user, query, repo):
    find(hub, user, repo, write=True)
    wanted = handler.json()
    if len(hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise HubError(404, "Object was not uploaded, or not whole")
    return 200, {}, {}


@route("POST", f"/api/models/{REPO}/commit/{REV}")
def commit(hub, handler, user, query, repo, rev):
    repository = find(hub, user, repo, write=True)
    if "create_pr" in query:
        raise HubError(501, "Pull requests are not served here")
    if rev not in repository.branches:
        raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    header, files = {}, dict(repository.commit(rev).files)
    for line in handler.lines():
        value = line["value"]
        if line["key"] == "header":
            header = value
        elif line["key"] == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]), large=False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                raise HubError(
                    400, "Your push was rejected because an LFS pointer pointed to a file that does not exist"
                )
            files[value["path"]] = File(hub.objects[value["oid"]], large=True)
        elif line["key"] in ("deletedFile", "deletedFolder"):
            prefix = value["path"].rstrip("/") + "/"
            gone = [path for path in files if path == value["path"] or path.startswith(prefix)]
            if not gone:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            files = {path: file for path, file in files.items() if path not in gone}
        else:
            raise HubError(400, f"Unknown operation: {line['key']}")
    if header.get("parentCommit") not in (None, repository.branches[rev]):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    if not header.get("summary"):
        raise HubError(400, '"summary" is required')
    errors = card_errors(files["README.md"].data.decode()) if "README.md" in files else []
    if errors:
        raise HubError(400, "Invalid metadata in README.md", errors=[{"message": message} for message in errors])
    made = repository.add(rev, header["summary"], header.get("description", ""), user.name, files)
    url = f"{hub.url}/{repo}/commit/{made.oid}"
    return (
        200,
        {},
        {"success": True, "commitUrl": url, "commitOid": made.oid, "hookOutput": "", "pullRequestUrl": None},
    )


@route("POST", f"/api/models/{REPO}/branch/{REV}")
def branch(hub, handler, user, query, repo, rev):
    repository = find(hub, user, repo, write=True)
    if rev in repository.branches:
        raise HubError(409, f"Reference already exists: refs/heads/{rev}")
    repository.branches[rev] = repository.commit(handler.json().get("startingPoint") or "main").oid
    return 200, {}, {}


@route("DELETE", f"/api/models/{REPO}/branch/{REV}")
def delete_branch(hub, handler, user, query, repo, rev):
    repository = find(hub, user, repo, write=True)
    if rev == "main" or rev not in repository.branches:
        raise HubError(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    del repository.branches[rev]
    return 200, {}, {}
