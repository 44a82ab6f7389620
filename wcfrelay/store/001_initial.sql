-- Dynamic relays and registrations live as long as the process and are not kept here.
-- The paths are canonical: lower case, no slash at either end. '' is the namespace.

CREATE TABLE relays (
    path TEXT NOT NULL PRIMARY KEY,
    created_at REAL NOT NULL,                        -- Unix seconds
    updated_at REAL NOT NULL,
    requires_client_authorization INTEGER NOT NULL,  -- 0 or 1
    response_timeout REAL,                           -- seconds; NULL: what the gateway has for all
    user_metadata TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE rules (
    path TEXT NOT NULL,
    name TEXT NOT NULL,
    rights TEXT NOT NULL,                            -- wire names, separated by a space
    primary_key TEXT NOT NULL,
    secondary_key TEXT NOT NULL,                     -- '' where there is none
    PRIMARY KEY (path, name)
) WITHOUT ROWID;
