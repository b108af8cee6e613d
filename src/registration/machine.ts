import {accessSync, readFileSync} from 'node:fs';
import {readFile} from 'node:fs/promises';
import {networkInterfaces} from 'node:os';
import {join} from 'node:path';
import {systemCode} from '../errors.ts';
import {systemFs, writeFileAtomic} from '../lifecycle/atomic-file.ts';

/** What tells this machine from a copy of its disk; each is there only where the machine, or our rights, give it. */
export interface MachineMarks {
	/** Of the firmware; for root only. */
	readonly productUuid?: string;
	/** Of the cloud, as cloud-init keeps it. */
	readonly instanceId?: string;
	/** Of network cards. */
	readonly macs: readonly string[];
}

/** Pure. By the first of them that both have; with none in common nothing is known, and so nothing said. */
export function isOtherMachine(before: MachineMarks, now: MachineMarks): boolean {
	if (before.productUuid && now.productUuid) return before.productUuid !== now.productUuid;
	if (before.instanceId && now.instanceId) return before.instanceId !== now.instanceId;
	if (before.macs.length === 0 || now.macs.length === 0) return false;
	return !before.macs.some(mac => now.macs.includes(mac));
}

export function lookAtMachine(): MachineMarks {
	const productUuid = readLine('/sys/class/dmi/id/product_uuid');
	const instanceId = readLine('/var/lib/cloud/data/instance-id');
	const macs = Object.entries(networkInterfaces())
		.filter(([name]) => isCard(name))
		.flatMap(([, infos]) => infos?.map(({mac}) => mac) ?? []);
	return {...(productUuid && {productUuid}), ...(instanceId && {instanceId}), macs: [...new Set(macs)].sort()};
}

/** Absent, or not for us. */
function readLine(path: string): string {
	try {
		return readFileSync(path, 'utf8').trim().toLowerCase();
	} catch {
		return '';
	}
}

/** Bridges and their like have no device behind them, and addresses made up at each boot. */
function isCard(name: string): boolean {
	try {
		accessSync(`/sys/class/net/${name}/device`);
		return true;
	} catch {
		return false;
	}
}

const format = 1;

export interface MachineRecord {
	/** undefined: none, or none that can be read. @throws system errors other than that it is not there */
	load(): Promise<MachineMarks | undefined>;
	/** @throws system errors */
	save(marks: MachineMarks): Promise<void>;
}

/** The marks of the machine that this state directory is of. */
export function keepMachine(stateDir: string): MachineRecord {
	const path = join(stateDir, 'machine.json');
	return {
		load: async () => {
			try {
				const record = JSON.parse(await readFile(path, 'utf8')) as {format?: unknown; marks?: Partial<MachineMarks>};
				const {macs} = record.marks ?? {};
				return record.format === format && Array.isArray(macs) ? {...record.marks, macs} : undefined;
			} catch (error) {
				if (systemCode(error) === 'ENOENT' || error instanceof SyntaxError) return undefined;
				throw error;
			}
		},
		save: async marks => {
			await systemFs.mkdir(stateDir, {mode: 0o700, recursive: true});
			await writeFileAtomic(path, `${JSON.stringify({format, marks})}\n`, 0o600);
		},
	};
}
