-- A transfer as a ledger in the database makes it: one call, on Savepoint's tables, with the same rows.
CREATE FUNCTION make_transfer(debit_id bigint, credit_id bigint, moved bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    debit accounts;
    credit accounts;
    moment timestamptz;
    transfer_id bigint;
BEGIN
    IF moved <= 0 OR debit_id = credit_id THEN
        RAISE EXCEPTION 'A transfer moves a positive amount between two accounts';
    END IF;
    -- In id order, so that opposite transfers cannot deadlock.
    PERFORM FROM accounts WHERE id IN (debit_id, credit_id) ORDER BY id FOR UPDATE;
    -- Only now, after the wait for the locks, is it the moment of the entries.
    moment := clock_timestamp();
    UPDATE accounts SET balance = balance - moved, version = version + 1, updated_at = moment
    WHERE id = debit_id RETURNING * INTO debit;
    UPDATE accounts SET balance = balance + moved, version = version + 1, updated_at = moment
    WHERE id = credit_id RETURNING * INTO credit;
    IF debit.balance < 0 AND debit.user_id IS NOT NULL THEN
        RAISE EXCEPTION 'The debit account holds less';
    END IF;
    IF debit.currency <> credit.currency THEN
        RAISE EXCEPTION 'The currencies of the accounts differ';
    END IF;
    INSERT INTO transfers (debit_account_id, credit_account_id, currency, amount, initiator, created_at)
    VALUES (debit_id, credit_id, debit.currency, moved, debit.user_id, moment) RETURNING id INTO transfer_id;
    INSERT INTO entries (account_id, seq, transfer_id, amount, balance_after, created_at)
    VALUES (debit_id, debit.version, transfer_id, -moved, debit.balance, moment),
           (credit_id, credit.version, transfer_id, moved, credit.balance, moment);
    RETURN transfer_id;
END
$$;
