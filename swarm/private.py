"""Messages about private swarms: no key, or another one."""

ASK_FOR_INVITATION = "this swarm is private: ask a member for an invitation (`swarm invite`), and pass it by --join"
OTHER_KEY = (
    "this swarm is private, and its key is another than yours: your invitation is to another swarm, or its members have changed the key; "
    "ask a member for a new invitation (`swarm invite`), and pass it by --join"
)
