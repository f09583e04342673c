-- What POST /transfers reads and stores. There are :accounts accounts, each with the id of its user; with :hot, all money
-- goes to account 1.
\set debit random(CASE WHEN :hot THEN 2 ELSE 1 END, :accounts)
\set credit CASE WHEN :hot THEN 1 ELSE (:debit + random(0, :accounts - 2)) % :accounts + 1 END
SELECT user_id AS caller, revoked_at, expires_at, status FROM access_tokens JOIN profiles USING (user_id)
WHERE token_hash = encode(sha256(convert_to('svp_bench_' || :debit, 'UTF8')), 'hex') \gset
BEGIN;
SELECT id, user_id, currency, balance, version FROM accounts WHERE id IN (:debit, :credit) ORDER BY id FOR UPDATE;
-- Only now, after the wait for the locks, is it the moment of the entries.
SELECT count(*) AS inactive, clock_timestamp() AS moment FROM profiles
WHERE user_id IN (:debit, :credit) AND status <> 'active' \gset
UPDATE accounts SET balance = balance - 1, version = version + 1, updated_at = :moment
WHERE id = :debit RETURNING balance, version \gset debit_
UPDATE accounts SET balance = balance + 1, version = version + 1, updated_at = :moment
WHERE id = :credit RETURNING balance, version \gset credit_
INSERT INTO transfers (debit_account_id, credit_account_id, currency, amount, initiator, created_at)
VALUES (:debit, :credit, 'EUR', 1, :caller, :moment) RETURNING id AS transfer_id \gset
INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at)
VALUES (:debit, :debit_version, :transfer_id, -1, :debit_balance, :moment),
       (:credit, :credit_version, :transfer_id, 1, :credit_balance, :moment);
COMMIT;
