import {readFileSync} from 'node:fs';
import {z} from 'zod';
import {systemCode} from '../errors.ts';
import {writePrivateFile} from './private-file.ts';

const schema = z.object({
	/** Undefined between two Envoys. */
	process: z
		.object({
			pid: z.number().int().positive(),
			startTime: z.number(),
			bootId: z.string(),
			exe: z.string(),
			argv: z.array(z.string()),
			adminSocket: z.string(),
			bootstrapHash: z.string(),
			startedAt: z.string(),
		})
		.optional(),
	/** The file it was started from, see `checkBinary`. */
	binary: z.string(),
	/** Optional flags that this file refused. */
	refusedFlags: z.array(z.string()),
});

/** What one agent leaves for the next about the Envoy it runs. Written atomically, 0600. */
export type ProcessRecord = z.infer<typeof schema>;
export type RecordedProcess = NonNullable<ProcessRecord['process']>;

/** Undefined when there is none, or none that can be read: then there is nothing to adopt by it. */
export function loadRecord(path: string): ProcessRecord | undefined {
	try {
		return schema.safeParse(JSON.parse(readFileSync(path, 'utf8'))).data;
	} catch (error) {
		if (error instanceof SyntaxError || systemCode(error) === 'ENOENT') return undefined;
		throw error;
	}
}

export function saveRecord(path: string, record: ProcessRecord): void {
	writePrivateFile(path, `${JSON.stringify(record, null, '\t')}\n`);
}
