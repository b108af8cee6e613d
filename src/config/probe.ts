import {isRecord, parseJson} from './metadata.ts';
import {show} from './problems.ts';
import type {ProbeCheck, ProbeConfig} from './types.ts';
import {checkHeader, ValueError, type ValueType} from './values.ts';

/** Longer than anyone waits; past this a number is a mistake, and timers overflow. */
const longestSeconds = 86_400;
const mostTimes = 1000;

/** `health.probes`: name → probe, as YAML or JSON. */
export const probes: ValueType<readonly ProbeConfig[]> = {
	name: 'probes',
	accepts: 'NAME: {httpGet | tcpSocket | exec | grpc: {…}, periodSeconds: …} for each probe',
	isTree: true,
	parse: raw => {
		const parsed = typeof raw === 'string' ? parseJson(raw) : undefined;
		if (!isRecord(parsed)) throw new ValueError('is not a map of probes');
		return Object.entries(parsed).map(([name, value]) => {
			if (!/^[a-zA-Z0-9](?:[-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$/.test(name))
				throw new ValueError(`has a probe whose name ${show(name)} is none (letters, digits and "-", at most 63)`);
			return parseProbe(name, value);
		});
	},
};

const handlers = ['httpGet', 'tcpSocket', 'exec', 'grpc'] as const;

/**
 * A readinessProbe in proto-JSON, as a WorkloadGroup has it. Numbers that are left out are those Kubernetes and
 * Istio's reference document: every 10 s, 1 s time-out, 1 success, 3 failures.
 * @throws ValueError naming the field
 */
export function parseProbe(name: string, value: unknown): ProbeConfig {
	const fields = fieldsOf(name, value, [
		...handlers,
		...['initialDelaySeconds', 'timeoutSeconds', 'periodSeconds', 'successThreshold', 'failureThreshold'],
	]);
	// Of proto-JSON, 0 is "not set".
	const number = (field: string, most: number, fallback: number): number =>
		wholeNumber(`${name}.${field}`, fields[field], 0, most) || fallback;
	const seconds = (field: string, fallback: number): number => 1000 * number(field, longestSeconds, fallback);
	return {
		name,
		check: parseCheck(name, fields),
		initialDelayMs: seconds('initialDelaySeconds', 0),
		periodMs: seconds('periodSeconds', 10),
		timeoutMs: seconds('timeoutSeconds', 1),
		successThreshold: number('successThreshold', mostTimes, 1),
		failureThreshold: number('failureThreshold', mostTimes, 3),
	};
}

function parseCheck(name: string, fields: Readonly<Record<string, unknown>>): ProbeCheck {
	const given = handlers.filter(handler => fields[handler] !== undefined);
	const [handler] = given;
	if (handler === undefined || given.length > 1)
		throw new ValueError(`has a probe ${show(name)} that needs exactly one of ${handlers.join(', ')}`);
	const place = `${name}.${handler}`;
	const value = fields[handler];
	switch (handler) {
		case 'httpGet': {
			const http = fieldsOf(place, value, ['path', 'port', 'host', 'scheme', 'httpHeaders']);
			const scheme = text(`${place}.scheme`, http['scheme']).toUpperCase();
			if (!['', 'HTTP', 'HTTPS'].includes(scheme))
				throw new ValueError(`has ${place}.scheme ${show(scheme)}, which is neither HTTP nor HTTPS`);
			const path = text(`${place}.path`, http['path']);
			if (/[^\x21-\x7e]/.test(path)) throw new ValueError(`has ${place}.path with characters that a URL cannot hold`);
			return {
				kind: 'http',
				scheme: scheme === 'HTTPS' ? 'https' : 'http',
				host: hostOf(place, http['host']),
				port: portOf(place, http['port']),
				path: path.startsWith('/') ? path : `/${path}`,
				headers: headersOf(place, http['httpHeaders']),
			};
		}
		case 'tcpSocket': {
			const tcp = fieldsOf(place, value, ['host', 'port']);
			return {kind: 'tcp', host: hostOf(place, tcp['host']), port: portOf(place, tcp['port'])};
		}
		case 'exec': {
			const {command} = fieldsOf(place, value, ['command']);
			const isTexts = Array.isArray(command) && command.every(word => typeof word === 'string' && !word.includes('\0'));
			if (!isTexts || !command[0]) throw new ValueError(`has ${place}.command that is not a list of words`);
			return {kind: 'exec', command};
		}
		case 'grpc': {
			const grpc = fieldsOf(place, value, ['port', 'service']);
			return {
				kind: 'grpc',
				port: portOf(place, grpc['port']),
				service: text(`${place}.service`, grpc['service']),
			};
		}
	}
}

/** A field without a value is not set, as in proto-JSON. */
function fieldsOf(place: string, value: unknown, known: readonly string[]): Readonly<Record<string, unknown>> {
	if (!isRecord(value)) throw new ValueError(`has ${place} that is not a map`);
	const unknown = Object.keys(value).find(field => !known.includes(field));
	if (unknown !== undefined)
		throw new ValueError(`has ${place} with a field ${show(unknown)}, which is none of ${known.join(', ')}`);
	return Object.fromEntries(Object.entries(value).filter(([, field]) => field !== null));
}

function wholeNumber(place: string, value: unknown, least: number, most: number): number {
	if (value === undefined) return least;
	const number = typeof value === 'string' && /^\d{1,10}$/.test(value) ? Number(value) : value;
	if (typeof number !== 'number' || !Number.isInteger(number) || number < least || number > most)
		throw new ValueError(`has ${place} that is not a whole number from ${least} to ${most}`);
	return number;
}

function portOf(place: string, value: unknown): number {
	if (value === undefined) throw new ValueError(`has ${place} without a port`);
	return wholeNumber(`${place}.port`, value, 1, 65_535);
}

function text(place: string, value: unknown): string {
	if (value === undefined) return '';
	if (typeof value !== 'string' || /[\0\r\n]/.test(value))
		throw new ValueError(`has ${place} that is not one line of text`);
	return value;
}

function hostOf(place: string, value: unknown): string | undefined {
	const host = text(`${place}.host`, value);
	if (!/^[-.:\w]{0,253}$/.test(host)) throw new ValueError(`has ${place}.host ${show(host)}, which is no host`);
	return host || undefined;
}

function headersOf(place: string, value: unknown): {name: string; value: string}[] {
	if (value === undefined) return [];
	if (!Array.isArray(value)) throw new ValueError(`has ${place}.httpHeaders that is not a list`);
	return value.map(entry => {
		const header = fieldsOf(`${place}.httpHeaders`, entry, ['name', 'value']);
		const [name, content] = [
			text(`${place}.httpHeaders`, header['name']),
			text(`${place}.httpHeaders`, header['value']),
		];
		checkHeader(name.toLowerCase(), content);
		return {name, value: content};
	});
}
