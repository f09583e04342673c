-- What POST /register stores. :prefix goes before each username, so that no two runs share one; :sent begins at 0.
\set sent :sent + 1
BEGIN;
INSERT INTO users (username, email, created_at)
VALUES (:prefix || 'c' || :client_id || 'n' || :sent, :prefix || 'c' || :client_id || 'n' || :sent || '@example.com', now())
RETURNING id AS user_id \gset
INSERT INTO profiles (user_id, status) VALUES (:user_id, 'active');
INSERT INTO access_tokens (user_id, token_hash, created_at)
VALUES (:user_id, encode(sha256(convert_to(:prefix || 'c' || :client_id || 'n' || :sent, 'UTF8')), 'hex'), now());
INSERT INTO accounts (user_id, currency, balance, version) VALUES (:user_id, 'EUR', 0, 0);
COMMIT;
