-- Each row is an error in the books, as `manage.py audit` would find it, in the time that a benchmark has for it.
SELECT 'account', id FROM accounts LEFT JOIN (
    SELECT account_id, sum(amount) AS total, count(*) AS entries FROM entries GROUP BY account_id
) AS written ON account_id = id
WHERE balance <> coalesce(total, 0) OR version <> coalesce(entries, 0)
UNION ALL
SELECT 'entry of account', account_id FROM (
    SELECT
        account_id, seq, balance_after, created_at, row_number() OVER history AS number,
        sum(amount) OVER history AS total, lag(created_at) OVER history AS earlier
    FROM entries WINDOW history AS (PARTITION BY account_id ORDER BY seq)
) AS numbered
WHERE seq <> number OR balance_after <> total OR created_at < earlier
UNION ALL
SELECT 'transfer', transfers.id FROM transfers
LEFT JOIN entries AS debit ON debit.transfer_id = transfers.id AND debit.account_id = debit_account_id
LEFT JOIN entries AS credit ON credit.transfer_id = transfers.id AND credit.account_id = credit_account_id
WHERE coalesce(-debit.amount, 0) <> transfers.amount OR coalesce(credit.amount, 0) <> transfers.amount
