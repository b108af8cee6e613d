import type {Result} from './doctor/index.ts';
import type {Command} from './index.ts';

export const doctorCommand: Command = {
	usage: 'doctor',
	description: 'Walk the way of the data and say what is wrong; exit code 0 if nothing fails',
	hasSettings: true,
	mainSettings: ['config', 'bundle', 'run-dir'],
	options: yargs =>
		yargs
			.option('json', {type: 'boolean', description: 'Print JSON'})
			.option('ask-ca', {type: 'boolean', description: 'Also have the CA sign a certificate with the token'}),
	run: async ({json, 'ask-ca': asksCa, ...flags}) => {
		// Not read at every start of the agent.
		const {examine} = await import('./doctor/index.ts');
		const results = await examine(flags, asksCa === true, new Date());
		process.stdout.write(json ? renderJson(results) : renderText(results));
		return results.some(({verdict}) => verdict === 'fail') ? 1 : 0;
	},
};

const count = (results: readonly Result[], verdict: Result['verdict']): number =>
	results.filter(each => each.verdict === verdict).length;

function renderJson(results: readonly Result[]): string {
	const report = {failed: count(results, 'fail'), warned: count(results, 'warn'), results};
	return `${JSON.stringify(report, undefined, '\t')}\n`;
}

function renderText(results: readonly Result[]): string {
	const width = Math.max(...results.map(({check}) => check.length));
	const lines = results.flatMap(({check, verdict, message, remedy}, index) => {
		const name = results[index - 1]?.check === check ? '' : check;
		const text = printable(message)
			.split('\n')
			.join(`\n${' '.repeat(width + 8)}`);
		const line = `${verdict.padEnd(4)}  ${name.padEnd(width)}  ${text}`;
		return remedy === undefined ? [line] : [line, `${' '.repeat(width + 8)}→ ${printable(remedy)}`];
	});
	const [failed, warned] = [count(results, 'fail'), count(results, 'warn')];
	const summary = failed + warned === 0 ? 'nothing is wrong' : `${failed} failed, ${warned} to look at`;
	return `${lines.join('\n')}\n\n${summary}\n`;
}

/** Certificates and names come from the network, and must not move the cursor of whoever reads this. */
const printable = (text: string): string => text.replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]+/g, ' ');
