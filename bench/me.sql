-- What GET /me reads.
\set id random(1, :accounts)
SELECT token_hash, revoked_at, expires_at, users.*, status
FROM access_tokens JOIN users ON users.id = access_tokens.user_id JOIN profiles ON profiles.user_id = users.id
WHERE token_hash = encode(sha256(convert_to('svp_bench_' || :id, 'UTF8')), 'hex');
