-- What GET /accounts/{id}/entries reads.
\set id random(1, :accounts)
SELECT token_hash, revoked_at, expires_at, users.*, status
FROM access_tokens JOIN users ON users.id = access_tokens.user_id JOIN profiles ON profiles.user_id = users.id
WHERE token_hash = encode(sha256(convert_to('svp_bench_' || :id, 'UTF8')), 'hex');
SELECT id, user_id, currency, balance, version FROM accounts WHERE id = :id;
SELECT entries.*, transfers.* FROM entries JOIN transfers ON transfers.id = entries.transfer_id
WHERE account_id = :id ORDER BY seq DESC LIMIT 51;
