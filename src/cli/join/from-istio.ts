import {existsSync} from 'node:fs';
import {lchown, mkdir, mkdtemp, readdir, rm, stat, writeFile} from 'node:fs/promises';
import {dirname, join} from 'node:path';
import type {Config} from '../../config/types.ts';
import {AgentError, reasonOf} from '../../errors.ts';
import {verifyPair} from '../../identity/certificate.ts';
import {holdState, spiffeIdOf} from '../../identity/state-dir.ts';
import {systemClock} from '../../lifecycle/index.ts';
import {Secret} from '../../log.ts';
import type {Flags} from '../index.ts';
import {loadFrom} from '../load.ts';
import {checkBundle} from './check.ts';
import {endExemption, exempt} from './istio-exemption.ts';
import {type IstioMachine, isIstioMachine, lookAtIstio, writeBundle} from './istio-machine.ts';
import {type JoinOptions, joinWith} from './join-with.ts';
import {demand, istioService, show} from './service.ts';

/** Whom the packages have agent and Envoy run as. */
const user = 'onramp';
const captureDropIn = '/run/systemd/system/onramp-capture.service.d/take-over.conf';
const istioDropIn = `/run/systemd/system/${istioService}.d/onramp.conf`;
const say = (text: string): boolean => process.stdout.write(`${text}\n`);

export interface FromIstioOptions extends Omit<JoinOptions, 'isInstallOnly'> {
	readonly isDryRun: boolean;
}

/**
 * Makes this machine, a workload of Istio's own agent, one of ours. Its rules stay until ours are in, so nothing goes past
 * the mesh meanwhile: connections are refused for as long as no Envoy runs. What fails is undone, and Istio's agent started again.
 * @returns exit code
 */
export async function joinFromIstio(target: string, flags: Flags, options: FromIstioOptions): Promise<number> {
	await refuseElsewhere();
	const machine = await lookAtIstio();
	const bundle = await makePlace();
	try {
		await writeBundle(machine, bundle);
		const {config} = await loadFrom({...flags, bundle});
		const certificate = checkCertificate(machine, config);
		// With a certificate the token, an hour old after an hour, is not needed.
		if (certificate.reason !== undefined) await checkBundle(bundle, flags, false);
		tellPlan(machine, certificate.reason, target);
		if (options.isDryRun) {
			say('nothing was changed');
			return 0;
		}
		return await carryOut(
			{bundle, target, flags, machine, config, isImported: certificate.reason === undefined},
			options,
		);
	} finally {
		await rm(bundle, {recursive: true, force: true});
	}
}

/** For a copy that holds the token: in memory, root's alone. One that was killed has left its own. */
async function makePlace(): Promise<string> {
	const [directory, prefix] = ['/run', 'onramp-from-istio-'];
	for (const name of await readdir(directory)) {
		const [, pid] = name.startsWith(prefix) ? (/-(\d+)-\w+$/.exec(name) ?? []) : [];
		if (pid !== undefined && !existsSync(`/proc/${pid}`))
			await rm(join(directory, name), {recursive: true, force: true});
	}
	return mkdtemp(join(directory, `${prefix}${process.pid}-`));
}

async function refuseElsewhere(): Promise<void> {
	const refuse = (why: string, hint: string) =>
		new AgentError('cli.usage', `join --from-istio: ${why}; nothing was changed`, {hint});
	if (process.getuid?.() !== 0) throw refuse('only root may', 'sudo onramp join --from-istio');
	if (!isIstioMachine())
		throw refuse('there is no /var/lib/istio/envoy/cluster.env', 'on a machine without Istio: onramp join BUNDLE');
	if ((await show('LoadState')) !== 'loaded')
		throw refuse('there is no onramp.service', 'install the package onramp first');
}

interface CertificateFinding {
	/** Why it cannot be used; undefined: it can. */
	readonly reason: string | undefined;
}

function checkCertificate({certificate, files}: IstioMachine, {workload}: Config): CertificateFinding {
	if (!certificate) return {reason: 'there is none in /etc/certs'};
	try {
		verifyPair(pairOf(certificate, files), {now: new Date(), spiffeId: spiffeIdOf(workload)});
		return {reason: undefined};
	} catch (error) {
		return {reason: reasonOf(error)};
	}
}

const pairOf = (
	{chainPem, keyPem}: NonNullable<IstioMachine['certificate']>,
	files: IstioMachine['files'],
): {chainPem: string; keyPem: Secret; rootsPem: string} => ({
	chainPem,
	keyPem: new Secret(keyPem),
	rootsPem: files.get('root-cert.pem')?.content.toString('latin1') ?? '',
});

function tellPlan({files, furtherVariables}: IstioMachine, noCertificate: string | undefined, target: string): void {
	say('found of Istio:');
	for (const [name, {path}] of files) say(`  ${name}: ${path}`);
	say(
		`  certificate: ${noCertificate === undefined ? '/etc/certs, valid, taken over' : `not taken over: ${noCertificate}`}`,
	);
	if (furtherVariables.length > 0)
		say(`  not taken over: what sidecar.env sets (${furtherVariables.join(', ')}); give it as flags or in onramp.yaml`);
	say('to be done:');
	say(`  1. the bundle is put into ${target}`);
	say(`  2. ${istioService} is stopped; its rules stay, so connections are refused rather than past the mesh`);
	say('  3. onramp.service is enabled and started');
	say("  4. rules of onramp are put in, and Istio's taken away in the same go");
	say(`  5. ${istioService} is disabled; its files stay, and "onramp leave --to-istio" is the way back`);
}

interface Job {
	readonly bundle: string;
	readonly target: string;
	readonly flags: Flags;
	readonly machine: IstioMachine;
	readonly config: Config;
	readonly isImported: boolean;
}

async function carryOut(job: Job, options: FromIstioOptions): Promise<number> {
	const {bundle, target, flags} = job;
	const undo: (() => Promise<unknown>)[] = [];
	let code: number;
	try {
		if (job.isImported) await importCertificate(job, undo);
		await dropIn(captureDropIn, takeOver, undo);
		// Its own script would take the rules away, and make them anew when it starts.
		await dropIn(istioDropIn, '[Service]\nExecStopPost=\nRestart=no\n', undo);
		undo.push(() => demand('start', istioService));
		undo.push(() => endExemption(user));
		undo.push(() => demand('disable', '--now', 'onramp.service'));
		await exempt(user);
		await demand('stop', istioService);
		say(`${istioService}: stopped`);
		code = await joinWith(bundle, target, flags, {...options, isInstallOnly: false});
		if (options.signal.aborted) code = 1;
	} catch (error) {
		await undoAll(undo);
		throw error;
	}
	if (code !== 0) {
		await undoAll(undo);
		return code;
	}
	await demand('disable', istioService);
	say(`${istioService}: disabled`);
	for (const path of [captureDropIn, istioDropIn]) await rm(path, {force: true});
	await demand('daemon-reload');
	await endExemption(user);
	return 0;
}

/**
 * Without a trial: under Istio's rules each connection is answered, by an Envoy, so what "worked before" would say nothing of
 * whom it reaches.
 */
const takeOver = '[Service]\nExecStart=\nExecStart=/usr/bin/onramp capture apply --if-enabled --take-over\n';

/** Until the next boot at most. */
async function dropIn(path: string, text: string, undo: (() => Promise<unknown>)[]): Promise<void> {
	undo.push(async () => {
		await rm(path, {force: true});
		await demand('daemon-reload');
	});
	await mkdir(dirname(path), {recursive: true});
	await writeFile(path, text);
	await demand('daemon-reload');
}

async function undoAll(undo: readonly (() => Promise<unknown>)[]): Promise<void> {
	say('that did not work: going back to Istio');
	const failures: string[] = [];
	for (const step of undo.toReversed()) await step().catch((error: unknown) => failures.push(reasonOf(error)));
	if (failures.length === 0) return void say(`${istioService} runs again, with its rules; onramp is stopped`);
	for (const failure of failures) say(`  could not be undone: ${failure}`);
	say('  → to go on: onramp join --from-istio');
}

/** As if the agent had been given it; it asks for one of its own half-way through its life. */
async function importCertificate({machine, config}: Job, undo: (() => Promise<unknown>)[]): Promise<void> {
	const {stateDir} = config.identity;
	if (existsSync(stateDir)) return; // An agent has been here, and has its own.
	undo.push(() => rm(stateDir, {recursive: true, force: true}));
	const held = await holdState(config.identity, config.workload, systemClock);
	const state = await held.open();
	await state.save({
		...pairOf(machine.certificate!, machine.files),
		receivedAt: new Date(),
		requestedSpiffeId: spiffeIdOf(config.workload),
		isTokenless: false,
	});
	await state.close();
	const {uid, gid} = await stat(dirname(stateDir));
	for (const path of ['', ...(await readdir(stateDir, {recursive: true}))])
		await lchown(join(stateDir, path), uid, gid);
}

/** The way back: ours is stopped, which takes its rules away, and Istio's agent started, which makes its own. */
export async function leaveToIstio(): Promise<number> {
	const refuse = (why: string, hint: string) =>
		new AgentError('cli.usage', `leave --to-istio: ${why}; nothing was changed`, {hint});
	if (process.getuid?.() !== 0) throw refuse('only root may', 'sudo onramp leave --to-istio');
	if ((await show('LoadState', istioService)) !== 'loaded')
		throw refuse(`there is no ${istioService}`, 'install istio-sidecar, or only leave: systemctl disable --now onramp');
	say('stopping onramp, which leaves the mesh and drains first');
	await demand('disable', '--now', 'onramp.service');
	say(`starting ${istioService}`);
	await demand('enable', '--now', istioService);
	say(`${istioService} runs, with its rules`);
	return 0;
}
