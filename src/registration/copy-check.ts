import {type Clock, never, type Running} from '../lifecycle/index.ts';
import type {Logger} from '../log.ts';
import {isOtherMachine, type MachineMarks, type MachineRecord} from './machine.ts';

export interface CopyStatus {
	/** This state directory was written on another machine, whose key we still have. */
	readonly isCopy: boolean;
	readonly reason?: string;
	readonly hint?: string;
}

export interface CopyCheck extends Running {
	status(): CopyStatus;
}

export interface CopyCheckDeps {
	readonly record: MachineRecord;
	readonly marks: () => MachineMarks;
	/** Asks for a certificate with a key of our own. Rejects when there is none to be had now. */
	readonly renewKey: () => Promise<unknown>;
	readonly clock: Clock;
	readonly log: Logger;
}

const retryMs = 30_000;

/**
 * Notices a cloned disk: two machines with one key are one identity to the mesh, and whoever takes one has both. The copy cannot
 * tell which of the two it is, so whoever finds itself on other hardware gets a key of its own.
 */
export async function startCopyCheck({record, marks, renewKey, clock, log}: CopyCheckDeps): Promise<CopyCheck> {
	const stopping = new AbortController();
	const {signal} = stopping;
	const now = marks();
	const save = () =>
		record.save(now).catch((err: unknown) => log.debug({err}, 'the marks of this machine are not kept'));
	const before = await record.load().catch(() => undefined);
	let isCopy = before !== undefined && isOtherMachine(before, now);
	const renew = async (): Promise<void> => {
		for (;;) {
			try {
				await renewKey();
				break;
			} catch (err) {
				log.debug({err}, 'no key of our own yet');
				await clock.sleep(retryMs, signal);
			}
		}
		isCopy = false;
		await save();
		log.info('this machine has a key of its own now');
	};
	if (isCopy) {
		log.warn({hint}, reason);
		renew().catch(() => {}); // We stop; the next start finds it as it is.
	} else if (before === undefined || JSON.stringify(before) !== JSON.stringify(now)) await save();
	return {
		finished: never,
		status: () => (isCopy ? {isCopy, reason, hint} : {isCopy}),
		stop: async () => stopping.abort(),
	};
}

const reason =
	'the state directory was written on another machine (a cloned or moved disk): asking for a key of our own';
const hint =
	'nothing, if it was moved; of an image that is cloned, leave the state directory out. A name of its own for each: workload.name';
